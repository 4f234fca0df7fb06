"""Read and check a run folder."""

import reprlib
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from mest_fed.errors import InputError
from mest_fed.rows import (
    LABELS,
    PROVENANCE,
    Amount,
    AppRoundRow,
    AppSummary,
    AppTier,
    ClientRow,
    ClientScore,
    Count,
    LabelCounts,
    Provenance,
    RoundRow,
    Share,
    Spread,
    Summary,
    Tier,
)
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.formats import short_name
from mest_fed.strict_json import parse_json


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """Where a choice of kernels holds: a shape of weight under a size of input."""

    size: tuple[Count, Count]
    band: Share


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One row of ``kernels.json``: implementations by product, and the times that were measured."""

    layers: tuple[str, ...]
    case: KernelCase
    choice: Mapping[str, str]
    milliseconds: Mapping[str, Mapping[str, Amount]]


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """``kernels.json``: which implementations the sparse layers ran on a CPU."""

    mode: str
    variant: str | None
    rows: tuple[KernelRow, ...]


#: Devices of one kind.
Device = Tier | AppTier


@dataclass(frozen=True, kw_only=True)
class FleetRun:
    """A finished run of any kind: its folder's files, read and checked."""

    config: str
    summary: Summary | AppSummary
    rounds: tuple[RoundRow | AppRoundRow, ...]
    tasks: tuple[ClientRow, ...]
    provenance: Provenance | None = None
    #: What a task gives when all goes well, in words.
    gives: ClassVar[str] = "result"
    #: The mode of rounds that wait for all their tasks.
    waits: ClassVar[str] = "sync"

    @property
    def waits_for_all(self) -> bool:
        """Whether a round lasts as long as its slowest task."""
        return True

    @property
    def devices(self) -> Sequence[Device]:
        """The kinds of device of the fleet."""
        return self.summary.tiers

    @property
    def energy_joules(self) -> float:
        """Energy of the fleet in the whole run."""
        return self.summary.energy_joules

    @property
    def task_counts(self) -> Mapping[TaskStatus, int]:
        """How many tasks ended so, as the summary says; empty in runs of earlier versions."""
        return self.summary.tasks


@dataclass(frozen=True, kw_only=True)
class Run(FleetRun):
    """A finished run of our own clients."""

    folder: Path
    summary: Summary
    rounds: tuple[RoundRow, ...]
    kernels: Kernels | None = None
    labels: LabelCounts | None = None
    gives: ClassVar[str] = "update"

    @property
    def dataset(self) -> str:
        """What the data set is called, with the name of its file where it has one."""
        path = str(self.setting("data", "path") or "")
        name = short_name(self.summary.dataset)
        return f"{name} ({Path(path).name})" if path else name

    def setting(self, section: str, key: str) -> Any:
        """Return a value of the run's configuration; None where it is not there."""
        table = tomllib.loads(self.config).get(section)
        return table.get(key) if isinstance(table, dict) else None

    @property
    def mode(self) -> str:
        """How the server waits for devices: ``server.mode``."""
        return str(self.setting("server", "mode") or self.waits)

    @property
    def waits_for_all(self) -> bool:
        """Whether a round lasts as long as its slowest task."""
        return self.mode == self.waits

    @property
    def last_scores(self) -> tuple[int, tuple[ClientScore, ...]] | None:
        """The last round in which clients evaluated, and what each of them found."""
        found = [(row.round, row.client_scores) for row in self.rounds if row.client_scores]
        return found[-1] if found else None

    @property
    def last_spread(self) -> tuple[int, Spread] | None:
        """The last round whose model clients evaluated, and how the primary metric spread."""
        spreads = ((row.round, row.spread(self.summary.primary_metric)) for row in self.rounds)
        found = [(number, spread) for number, spread in spreads if spread is not None]
        return found[-1] if found else None


@dataclass(frozen=True, kw_only=True)
class AppRun(FleetRun):
    """A finished run of a Flower app."""

    summary: AppSummary
    rounds: tuple[AppRoundRow, ...]


T = TypeVar("T")

_APP_ROUND = TypeAdapter(AppRoundRow)
_APP_SUMMARY = TypeAdapter(AppSummary)
_ROUND = TypeAdapter(RoundRow)
_TASK = TypeAdapter(ClientRow)
_SUMMARY = TypeAdapter(Summary)
_KERNELS = TypeAdapter(Kernels)
_PROVENANCE = TypeAdapter(Provenance)
_LABELS = TypeAdapter(LabelCounts)
_MAY_BE_NULL = {"mutation", "final_accuracy", "final_client_accuracy"}


def load_run(folder: Path) -> Run | AppRun:
    """Read ``config.toml``, ``summary.json``, the logs and, where there is one, ``kernels.json``.

    A configuration with a section ``app`` is that of a Flower app.

    Raises
    ------
    InputError
        If the folder is not that of a finished run, or a file is missing or broken; names the
        file and, where there is one, the line.
    """
    if not folder.is_dir():
        what = "is a file; allowed: the folder of a run" if folder.exists() else "does not exist"
        raise InputError(f"run folder {folder} {what}")
    config = read_text(folder / "config.toml")
    try:
        is_app = "app" in tomllib.loads(config)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{folder / 'config.toml'}: {error}") from None
    return _load_app_run(folder, config) if is_app else _load_our_run(folder, config)


def _load_our_run(folder: Path, config: str) -> Run:
    summary = read_summary(folder)
    rounds = tuple(read_lines(folder / "rounds.jsonl", _ROUND))
    _check_rounds(folder, rounds, summary.rounds)
    tasks = tuple(read_lines(folder / "clients.jsonl", _TASK))
    return Run(
        folder=folder,
        config=config,
        summary=summary,
        rounds=rounds,
        tasks=tasks,
        kernels=_read_where_there(folder / "kernels.json", _KERNELS),
        provenance=_read_where_there(folder / PROVENANCE, _PROVENANCE),
        labels=_read_where_there(folder / LABELS, _LABELS),
    )


def _load_app_run(folder: Path, config: str) -> AppRun:
    path = folder / "summary.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: the run did not end; see {folder / 'run.log'}")
    rounds, tasks = folder / "rounds.jsonl", folder / "clients.jsonl"
    return AppRun(
        config=config,
        summary=validate(_APP_SUMMARY, parse_object(read_text(path), str(path)), str(path)),
        # An app may send nothing.
        rounds=tuple(read_lines(rounds, _APP_ROUND)) if rounds.exists() else (),
        tasks=tuple(read_lines(tasks, _TASK)) if tasks.exists() else (),
        provenance=_read_where_there(folder / PROVENANCE, _PROVENANCE),
    )


def _read_where_there(path: Path, adapter: TypeAdapter[T]) -> T | None:
    """Read a file that runs of earlier versions lack."""
    if not path.exists():
        return None
    return validate(adapter, parse_object(read_text(path), str(path)), str(path))


def read_summary(folder: Path) -> Summary:
    """Read ``summary.json`` of a run of our own clients.

    Raises
    ------
    InputError
        If it is missing or broken.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise _unfinished(folder, f"{path} does not exist")
    raw = parse_object(read_text(path), str(path))
    needed = (f.name for f in fields(Summary) if f.default is f.default_factory is MISSING)
    for key in needed:
        if key not in raw or (raw[key] is None and key not in _MAY_BE_NULL):
            raise _unfinished(folder, f"{path} has no value for {key!r}")
    return validate(_SUMMARY, raw, str(path))


def _check_rounds(folder: Path, rounds: tuple[RoundRow, ...], expected: int) -> None:
    path = folder / "rounds.jsonl"
    numbers = [row.round for row in rounds]
    for before, after in pairwise(numbers):
        if after <= before:
            raise InputError(f"{path}: round {after} follows round {before}; rounds must increase")
    last = numbers[-1] if numbers else None
    if last != expected:
        found = "holds no round" if last is None else f"ends at round {last}"
        raise _unfinished(folder, f"{path} {found}, summary.json says {expected}")


def read_lines(path: Path, adapter: TypeAdapter[T]) -> Iterator[T]:
    """Read and check a file with a JSON object a line.

    Raises
    ------
    InputError
        If the file is missing or a line is wrong; names it.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield validate(adapter, parse_object(line, where), where)


def read_text(path: Path) -> str:
    """Read a file of a run folder.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: not a run folder, or not a whole one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse an object; NaN and infinities, which a diverged loss gives, become null."""
    return parse_json(text, where, dict, infinite_as_null=True)


def validate(adapter: TypeAdapter[T], raw: object, where: str) -> T:
    """Check what JSON holds.

    Raises
    ------
    InputError
        If a value is missing or wrong; names it.
    """
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        raise InputError(f"{where}: {key!r} is missing")
    given = f"{key} = " if key else ""
    raise InputError(f"{where}: {given}{reprlib.repr(first['input'])}: {first['msg']}")


def _unfinished(folder: Path, why: str) -> InputError:
    command = f"mest-fed simulate --resume --out {shlex.quote(str(folder))}"
    return InputError(f"{why}: the run is unfinished; continue it with `{command}`")
