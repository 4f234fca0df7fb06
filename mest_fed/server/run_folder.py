"""The run folder: everything that a run leaves behind, readable without mest-fed."""

import hashlib
import io
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mest_fed.config import RunConfig, from_table, own_files, read_toml, to_toml
from mest_fed.data import Encoding
from mest_fed.errors import InputError
from mest_fed.kernels.table import Table, choices_to_rows, read_table
from mest_fed.nn import SparseState, to_dense
from mest_fed.rows import AppSummary, Summary, as_row
from mest_fed.server.checkpoint import whole
from mest_fed.server.rows import with_metrics
from mest_fed.strict_json import parse_json, read_json
from mest_fed.system.files import whole_file
from mest_fed.task import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG, ROUNDS, CLIENTS, SUMMARY = "config.toml", "rounds.jsonl", "clients.jsonl", "summary.json"
KERNELS, MEMORY, LOG, MODEL = "kernels.json", "memory.json", "run.log", "model.pt"
ENCODING = "encoding.json"
PARTITIONS = "partitions.npz"
#: How a person names a run folder, and says that its run goes on: to the command and to Flower.
COMMAND_KEYS, FLOWER_KEYS = ("--out", "--resume"), ("deployment.folder =", "deployment.resume=true")

#: Files that are written once, before the first round.
SEALED = (CONFIG, KERNELS, MEMORY, PARTITIONS)


class RunFolder:
    """A folder of ``config.toml``, ``kernels.json``, ``rounds.jsonl`` and the like.

    Use :meth:`begin` for a new run and :meth:`reopen` to go on with one.

    Parameters
    ----------
    path : Path
        Where it is.
    keys : tuple of str
        What a person types to name the folder, and to go on with the run in it.
    bundle : Path, optional
        Where this process has the code of the run, which a resumed run may find elsewhere.
    """

    def __init__(
        self, path: Path, keys: tuple[str, str] = COMMAND_KEYS, bundle: Path | None = None
    ) -> None:
        self.path = path
        self.bundle = path if bundle is None else bundle
        self._named, self._resumed_by = keys
        self._logs = {name: _Log() for name in (ROUNDS, CLIENTS)}
        self._files: dict[str, str | None] | None = None
        self.checkpoints = path / "checkpoints"
        self.partitions = path / PARTITIONS
        self.states = path / "states"
        self._made: list[Path] = []

    @property
    def partition_file(self) -> str:
        """Path of the partitions for ``data.partition_file``; empty if none were saved."""
        return str(self.partitions) if self.partitions.exists() else ""

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run in it got as far as its first checkpoint."""
        return self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    @property
    def resumable(self) -> bool:
        """Whether there is a run in it that ``--resume`` goes on with."""
        unfinished = (self.path / CONFIG).exists() and not (self.path / SUMMARY).exists()
        return unfinished and self.has_checkpoint

    def check_new(self) -> None:
        """Refuse a folder that a new run cannot have.

        Raises
        ------
        InputError
            If it holds anything already: nothing is overwritten.
        """
        try:
            if not self.path.exists() or not any(self.path.iterdir()):
                return
        except OSError as error:
            raise InputError(f"{self._named} {self.path} cannot be used: {error}") from None
        found = "is not empty; allowed: a new folder"
        if self._resumed_by:
            found += f", or {self._resumed_by} for the run in it"
        if self.resumable:
            found = f"is not empty: it holds a run that is not finished; go on with: {self.resume}"
        elif (self.path / CONFIG).exists() and not (self.path / SUMMARY).exists():
            found = (
                "is not empty: it holds a run that ended before its first checkpoint, which cannot "
                "be resumed; allowed: a new folder, or remove this one"
            )
        raise InputError(f"{self._named} {self.path} {found}")

    @property
    def resume(self) -> str:
        """What a person types to go on with the run."""
        if self._resumed_by != COMMAND_KEYS[1]:
            return self._resumed_by
        return f"mest-fed simulate --resume --out {shlex.quote(str(self.path))}"

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> "RunFolder":
        """Make the folder of a new run; see :meth:`check_new` and :meth:`begin`."""
        folder = cls(path)
        folder.check_new()
        folder.begin(to_toml(config))
        return folder

    def begin(self, config: str) -> None:
        """Make the folder and write a configuration into it, as TOML; :meth:`discard` undoes it.

        Raises
        ------
        InputError
            If the folder cannot be written, or another run has it.
        """
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # "x": of two runs that found the folder empty, one alone gets it.
            stream = (self.path / CONFIG).open("x", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self._named} {self.path} cannot be used: {error}") from None
        try:
            with stream:
                stream.write(config)
        except OSError as error:
            self.discard()
            raise InputError(f"{self._named} {self.path} cannot be used: {error}") from None

    def discard(self) -> None:
        """Remove what a run that did not get to its first checkpoint has left since it began."""
        with suppress(OSError):
            for path in self.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
        for folder in self._made:
            with suppress(OSError):  # not empty: files of others
                folder.rmdir()

    def reopen(self) -> RunConfig:
        """Return the configuration of the interrupted run in the folder.

        Raises
        ------
        InputError
            If there is no run in it, or the run is finished.
        """
        path, key = self.path, self._resumed_by
        if not (path / CONFIG).exists():
            raise InputError(f"{key}: no run in {path} ({CONFIG} is missing)")
        if (path / SUMMARY).exists():
            raise InputError(f"{key}: the run in {path} is finished ({SUMMARY} exists)")
        return from_table(read_toml(path / CONFIG), str(path / CONFIG))

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to one of the ``.jsonl`` files.

        Raises
        ------
        InputError
            If the disk is full; :meth:`read` passes over what was cut off.
        """
        self._append(name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def _append(self, name: str, text: str) -> None:
        data = text.encode()
        with _writing(self.path / name), (self.path / name).open("ab") as file:
            file.write(data)
        self._logs[name].add(data)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read a ``.jsonl`` file; empty if it does not exist.

        A last line without its end, which a killed process left, does not count.

        Raises
        ------
        InputError
            If a line is no JSON object with the number of a round; names it.
        """
        path = self.path / name
        rows = []
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for number, line in enumerate(lines, start=1):
            row = _row(line, f"{path}, line {number}")
            rows.append(with_metrics(row) if name == ROUNDS else row)
        return rows

    def seal(self, config: RunConfig) -> dict[str, Any]:
        """Return what tells that the folder is as it is now: digests of files, and of log lines.

        The files of :data:`SEALED` must be there, or never be. They and those of
        :func:`~mest_fed.config.own_files` are read once.
        """
        if self._files is None:
            names = (*SEALED, *map(self._own_name, own_files(config)))
            self._files = {name: _digest(self._place(name)) for name in names}
        return {
            "files": self._files,
            "logs": {name: [log.size, log.digest()] for name, log in self._logs.items()},
        }

    def check_seal(self, seal: Mapping[str, Any]) -> None:
        """Check that the folder is as :meth:`seal` found it, but for lines that came later.

        Raises
        ------
        InputError
            If a file is missing or has changed: names it.
        """
        for name, digest in seal["files"].items():
            place = self._place(name)
            if (found := _digest(place)) != digest:
                done = "wrote" if name in SEALED else "first read"
                what = "is missing" if found is None else f"has changed since the run {done} it"
                raise InputError(f"{self._resumed_by}: {place} {what}")
        for name, (size, digest) in seal["logs"].items():
            self.read(name)  # lines that came later are dropped, but must be lines
            path = self.path / name
            log = _Log()
            log.add(path.read_bytes()[:size] if path.exists() else b"")
            if (log.size, log.digest()) != (size, digest):
                raise InputError(f"{self._resumed_by}: {path} has changed since the run wrote it")

    def _own_name(self, file: Path) -> str:
        """Return what a seal calls a user's file: its path, relative in the bundle."""
        bundle = self.bundle
        return str(file.relative_to(bundle) if file.is_relative_to(bundle) else file)

    def _place(self, name: str) -> Path:
        """Return where the file that a seal calls so is today."""
        return (self.path if name in SEALED else self.bundle) / name

    def cut_to(self, seal: Mapping[str, Any] | None) -> None:
        """Drop what was logged since a seal, or all; a resumed run logs it again."""
        for name in self._logs:
            size = 0 if seal is None else seal["logs"][name][0]
            path = self.path / name
            data = path.read_bytes()[:size] if path.exists() else b""
            self._replace(name, data.decode())
            self._logs[name] = _Log()
            self._logs[name].add(data)

    def write_summary(self, summary: Summary | AppSummary) -> None:
        """Write ``summary.json``, the mark of a finished run."""
        row = as_row(summary, optional=("reason",))
        self._replace(SUMMARY, json.dumps(row, indent=2, allow_nan=False) + "\n")

    def write_row(self, name: str, row: "DataclassInstance") -> None:
        """Write a class of :mod:`mest_fed.rows` as a file of its own."""
        self._replace(name, json.dumps(as_row(row), allow_nan=False) + "\n")

    def write_encoding(self, encoding: Encoding | None) -> None:
        """Write ``encoding.json``: how examples became numbers, for devices with their own."""
        if encoding is not None:
            self._replace(ENCODING, json.dumps(encoding.as_table(), indent=2) + "\n")

    def write_model(self, task: Task, state: SparseState) -> None:
        """Write ``model.pt``: a plain ``state_dict``, which loads into the model as first built."""
        task.load(state)
        data = io.BytesIO()
        torch.save(to_dense(task.model).state_dict(), data)
        self._replace(MODEL, data.getvalue())

    def write_kernels(self, table: Table) -> None:
        """Write ``kernels.json``: which implementations the sparse layers run."""
        head = choices_to_rows(table)
        rows = ",\n".join(json.dumps(row) for row in head.pop("rows"))  # a line each
        self._replace(KERNELS, f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n')

    def keep_facts(self, kernels: Table, peaks: Mapping[str, int]) -> None:
        """Write down what a resumed run must not find out anew; what is there stays as it is."""
        if not (self.path / KERNELS).exists():
            self.write_kernels(kernels)
        if not (self.path / MEMORY).exists():
            self.write_memory(peaks)

    def read_kernels(self) -> Table:
        """Read ``kernels.json``.

        Raises
        ------
        InputError
            If it is missing, or not one that :meth:`write_kernels` wrote.
        """
        return read_table(self.path / KERNELS)

    def write_memory(self, peaks: Mapping[str, int]) -> None:
        """Write ``memory.json``: measured peak of each plan, in bytes, by a hash of the plan."""
        self._replace(MEMORY, json.dumps(peaks, indent=2) + "\n")

    def read_memory(self) -> dict[str, int] | None:
        """Read ``memory.json``; None if it does not exist.

        Raises
        ------
        InputError
            If it is not one that :meth:`write_memory` wrote.
        """
        path = self.path / MEMORY
        if not path.exists():
            return None
        peaks = read_json(path, dict)
        if not all(isinstance(size, int) for size in peaks.values()):
            raise InputError(f"{path} is not a table of bytes by plan")
        return peaks

    def _replace(self, name: str, content: str | bytes) -> None:
        path = self.path / name
        with _writing(path), whole_file(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)


def read_seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal that a checkpoint's facts hold.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If there is none, or it is none of :meth:`RunFolder.seal`.
    """
    seal: dict[str, Any] = facts["seal"]
    for size, _ in seal["logs"].values():
        whole(size)
    if set(seal["logs"]) != {ROUNDS, CLIENTS} or not set(seal["files"]) >= set(SEALED):
        raise ValueError("its seal is not of the files of a run")
    return seal


class _Log:
    """Size and digest of a file that only grows."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def _digest(path: Path) -> str | None:
    """Return the digest of a file; None if it does not exist."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(line: bytes, where: str) -> dict[str, Any]:
    """Read a line of a log."""
    row = parse_json(line, where, dict)
    number = row.get("round")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InputError(f"{where}: it is no object with a round from 0")
    return row


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
