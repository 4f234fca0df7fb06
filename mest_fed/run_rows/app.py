"""The rows and the summary of a run of any Flower app."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mest_fed.run_rows.row import Amount, Count, Number
from mest_fed.run_rows.summary import Watts
from mest_fed.schema import FailureKind, TaskStatus


@dataclass(frozen=True, kw_only=True)
class AppRoundRow:
    """One line of ``rounds.jsonl`` of a Flower app.

    The units are those of :class:`mest_fed.run_rows.rounds.RoundRow`. Metrics are the means of the
    clients' replies, weighted by their examples. ``tasks`` and ``failures`` count tasks of training
    and evaluation, those that ended in the round.
    """

    round: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    bytes_up: Count
    bytes_down: Count
    trained: Count
    evaluated: Count
    failed: Count
    tasks: Mapping[TaskStatus, Count] = field(default_factory=dict)
    failures: Mapping[FailureKind, Count] = field(default_factory=dict)
    energy_joules: Amount
    train_metrics: Mapping[str, Number]
    evaluate_metrics: Mapping[str, Number]


@dataclass(frozen=True, kw_only=True)
class AppTier:
    """The devices of one profile of a Flower app's fleet."""

    profile: str
    title: str
    clients: Count
    watts: Watts | None = None


@dataclass(frozen=True, kw_only=True)
class AppResult:
    """What a strategy returned; metrics by source, round and name."""

    strategy: str
    metrics: Mapping[str, Mapping[int, Mapping[str, Number]]]
    arrays_sha256: str


@dataclass(frozen=True, kw_only=True)
class AppSummary:
    """``summary.json`` of a Flower app, written when its run has ended.

    ``not_finite`` counts, by kind and name, the values of metrics that are left out everywhere else
    since they are not finite; ``not_finite_last`` names those among the last values of the run.
    """

    kind: str = "flower-app"
    app: str
    serverapp: str
    clientapp: str
    seed: int
    nodes: Count
    rounds: Count
    bytes_up: Count
    bytes_down: Count
    trained: Count
    evaluated: Count
    failed: Count
    energy_joules: Amount
    virtual_seconds: Amount
    wall_seconds: Amount
    tasks: Mapping[TaskStatus, Count] = field(default_factory=dict)
    failures: Mapping[FailureKind, Count] = field(default_factory=dict)
    tiers: tuple[AppTier, ...]
    results: tuple[AppResult, ...]
    server_state: Mapping[str, Number]
    server_arrays: Mapping[str, str]
    versions: Mapping[str, str]
    not_finite: Mapping[str, Count] = field(default_factory=dict)
    not_finite_last: tuple[str, ...] = ()
    unfinished: str | None = None

    @property
    def warning(self) -> str | None:
        """What a person must know first, in one line: that the run came to nothing, and why."""
        asked, done = sum(self.tasks.values()), self.tasks.get(TaskStatus.OK, 0)
        if asked and not done:
            lost = ", ".join(f"{count} {status}" for status, count in self.tasks.items() if count)
            return f"no client gave a result ({lost})"
        if self.not_finite_last:
            return f"the run diverged: at its end, {self._left_out(self.not_finite_last)}"
        return None

    @property
    def notice(self) -> str | None:
        """What became finite again, in one line."""
        names = tuple(name for name in self.not_finite if name not in self.not_finite_last)
        return self._left_out(names) if names else None

    def _left_out(self, names: tuple[str, ...]) -> str:
        counts = (f"{name} ({self.not_finite.get(name, 0)})" for name in names)
        return f"metrics were not finite and are left out: {', '.join(counts)}"
