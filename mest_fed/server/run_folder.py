"""The run folder: everything that a run leaves behind, readable without mest-fed."""

import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mest_fed.config import RunConfig, from_table, read_toml, to_toml
from mest_fed.data import Encoding
from mest_fed.errors import InputError
from mest_fed.kernels.table import Table, choices_to_rows, read_table
from mest_fed.nn import to_dense
from mest_fed.run_rows.app import AppSummary
from mest_fed.run_rows.row import as_row
from mest_fed.run_rows.summary import Summary
from mest_fed.server.claim import Claim
from mest_fed.server.folder_names import (
    CHECKPOINTS,
    CONFIG,
    ENCODING,
    KERNELS,
    MEMORY,
    MODEL,
    PARTITIONS,
    REPORT,
    STATES,
    SUMMARY,
)
from mest_fed.server.row_logs import RowLogs
from mest_fed.server.seal import FolderSeal
from mest_fed.sparsity.state import SparseState
from mest_fed.strict_json import read_json
from mest_fed.system.files import replace_file, try_folder, writing
from mest_fed.task import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: How a person names a run folder, and says that its run goes on: to the command and to Flower.
COMMAND_KEYS, FLOWER_KEYS = ("--out", "--resume"), ("deployment.folder =", "deployment.resume=true")


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

    Attributes
    ----------
    logs : RowLogs
        Its rows of rounds and of clients.
    """

    def __init__(
        self, path: Path, keys: tuple[str, str] = COMMAND_KEYS, bundle: Path | None = None
    ) -> None:
        self.path = path
        self.bundle = path if bundle is None else bundle
        self._named, self._resumed_by = keys
        self.logs = RowLogs(path)
        self._seal = FolderSeal(path, self.bundle, self.logs, self._resumed_by)
        self.checkpoints = path / CHECKPOINTS
        self.partitions = path / PARTITIONS
        self.states = path / STATES
        self._claim = Claim(path)
        self._is_new = False

    @property
    def partition_file(self) -> str:
        """Path of the partitions for ``data.partition_file``; empty if none were saved."""
        return str(self.partitions) if self.partitions.exists() and not self._is_new else ""

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run in it got as far as its first checkpoint."""
        return self._claim.holds_checkpoint

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
            If it holds anything already but the beginnings of a run that came to nothing.
        """
        try:
            self._is_new = self._claim.is_new()  # until it begins, what it holds is another's
            if self._is_new:
                return
        except OSError as error:
            raise self._unusable(error) from None
        found = "is not empty; allowed: a new folder"
        if self._resumed_by:
            found += f", or {self._resumed_by} for the run in it"
        if self.resumable:
            found = f"is not empty: it holds a run that is not finished; go on with: {self.resume}"
        elif (self.path / CONFIG).exists() and not (self.path / SUMMARY).exists():
            found = (
                "is not empty: it holds a run without a checkpoint, which cannot be resumed; "
                "allowed: a new folder, or remove this one"
            )
        raise InputError(f"{self._named} {self.path} {found}")

    def check_writable(self) -> None:
        """Refuse a folder that this process could not make or write, without making it.

        Raises
        ------
        InputError
            If the nearest folder that exists is none, or is closed to this process.
        """
        try:
            try_folder(self.path)
        except OSError as error:
            raise self._unusable(error) from None

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

        It is this run's alone until :meth:`release`.

        Raises
        ------
        InputError
            If the folder cannot be written, or another run has it.
        """
        try:
            self._claim.take()
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self.check_new()  # another run may have had it since
            self._claim.clear()
            # "x": a run of an earlier version may have begun meanwhile, which takes no lock.
            with (self.path / CONFIG).open("x", encoding="utf-8") as stream:
                stream.write(config)
            self._is_new = False
        except OSError as error:
            self.release()
            raise self._unusable(error) from None
        except BaseException:
            self.release()
            raise

    def hold(self) -> None:
        """Keep other processes out of a folder that exists, until :meth:`release`.

        Raises
        ------
        InputError
            If one is in it, or the folder cannot be written.
        """
        try:
            self._claim.hold()
        except OSError as error:
            raise self._unusable(error) from None

    def release(self) -> None:
        """Let others in again."""
        self._claim.release()

    def discard(self) -> None:
        """Remove what a run that did not get to its first checkpoint has left since it began."""
        self._claim.discard()

    def discard_if_early(self) -> None:
        """Remove the folder if no client had a result in it."""
        if self._claim.is_new():
            self._claim.discard()

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f"{self._named} {self.path} cannot be used: {error}")

    def reopen(self, *, finished: bool = False) -> RunConfig:
        """Return the configuration of the interrupted run in the folder.

        Parameters
        ----------
        finished : bool
            Whether the run may be finished, too.

        Raises
        ------
        InputError
            If there is no run in it, it has no checkpoint, or it is finished.
        """
        path, key = self.path, self._resumed_by
        if not (path / CONFIG).exists():
            raise InputError(f"{key}: no run in {path} ({CONFIG} is missing)")
        if (path / SUMMARY).exists() and not finished:
            more = "; --rounds N adds rounds" if key == COMMAND_KEYS[1] else ""
            raise InputError(f"{key}: the run in {path} is finished ({SUMMARY} exists){more}")
        if not self.has_checkpoint:
            raise InputError(
                f"{key}: the run in {path} ended before its first checkpoint (no checkpoint in "
                f"{self.checkpoints}); begin it anew without {key}"
            )
        return from_table(read_toml(path / CONFIG), str(path / CONFIG))

    def write_config(self, text: str) -> None:
        """Replace ``config.toml``; a checkpoint must have sealed the text before."""
        self._replace(CONFIG, text)

    def forget_end(self) -> None:
        """Remove what a run has left at its end, since it goes on."""
        for name in (SUMMARY, MODEL, REPORT):
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    def seal(self, config: RunConfig) -> dict[str, Any]:
        """Return what tells that the folder is as it is now: see :class:`FolderSeal`."""
        return self._seal.take(config)

    def check_seal(self, seal: Mapping[str, Any], *, config_known: bool = False) -> None:
        """Check that the folder is as :meth:`seal` found it, but for lines that came later.

        Parameters
        ----------
        seal : mapping
            The seal.
        config_known : bool
            Whether ``config.toml`` was checked already.

        Raises
        ------
        InputError
            If a file is missing or has changed, or a later line is none: names it.
        """
        for name in seal["logs"]:
            self.logs.read(name)  # lines that came later are dropped, but must be lines
        self._seal.check(seal, without=CONFIG if config_known else "")

    def write_summary(self, summary: Summary | AppSummary) -> None:
        """Write ``summary.json``, the mark of a finished run."""
        row = as_row(summary, optional=("reason", "unfinished", "why_torch"))
        self._replace(SUMMARY, json.dumps(row, indent=2, allow_nan=False) + "\n")

    def write_row(self, name: str, row: "DataclassInstance") -> None:
        """Write a class of :mod:`mest_fed.run_rows` as a file of its own."""
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
        replace_file(self.path / MODEL, data.getvalue())

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
        if not path.exists() or self._is_new:
            return None
        peaks = read_json(path, dict)
        if not all(isinstance(size, int) for size in peaks.values()):
            raise InputError(f"{path} is not a table of bytes by plan")
        return peaks

    def _replace(self, name: str, content: str) -> None:
        replace_file(self.path / name, content.encode())
