"""What a run folder holds, once it is read and checked: a run of ours, or of somebody's app."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mest_fed.run_rows.app import AppRoundRow, AppSummary, AppTier
from mest_fed.run_rows.facts import LabelCounts, Provenance
from mest_fed.run_rows.rounds import ClientRow, ClientScore, RoundRow, Spread
from mest_fed.run_rows.row import Amount, Count, Share
from mest_fed.run_rows.summary import Summary, Tier
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.formats import short_name


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


@dataclass(frozen=True)
class Clock:
    """What the times of a run's devices are: virtual ones, which are modelled, or real ones.

    Parameters
    ----------
    name : str
        What its time is called.
    basis : str
        ``modelled`` or ``measured``; empty where runs of both kinds stand together.
    """

    name: str
    basis: str

    @classmethod
    def of(cls, *runs: "FleetRun") -> "Clock":
        """Return what holds for all of these runs."""
        kinds = {run.deployed for run in runs}
        if kinds == {True}:
            return cls("time", "measured")
        return cls("time", "") if len(kinds) > 1 else cls("virtual time", "modelled")

    def label(self, unit: str) -> str:
        """Return what stands at an axis of it."""
        return f"{self.name}, {unit}{f' ({self.basis})' if self.basis else ''}"


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
    def deployed(self) -> bool:
        """Whether its devices were real."""
        return isinstance(self.summary, Summary) and self.summary.deployed

    @property
    def clock(self) -> Clock:
        """What the times of its devices are."""
        return Clock.of(self)

    @property
    def energy_joules(self) -> float:
        """Energy of the fleet in the whole run, as far as it is known."""
        return self.summary.energy_joules or 0.0

    @property
    def without_power(self) -> int:
        """How many devices the energy leaves out."""
        return self.summary.without_power if isinstance(self.summary, Summary) else 0

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
