"""The rows and the summary of a run folder: what a run writes, and what the report reads.

Each class is one kind of JSON object. A run makes instances and writes them with :func:`as_row`;
the order of the fields is that of the keys. The report reads the same classes and checks the limits
of their values. A field that runs of earlier versions lack has a default.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from mest_fed.schema import ACCURACY, FailureKind, Metric, TaskStatus, in_words
from mest_fed.units import number_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """The limits of a number, which pydantic checks where a row is read.

    Parameters
    ----------
    least, most : float, float or None
        The smallest and the largest value allowed; None: no largest.
    """

    least: float
    most: float | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Tell pydantic the limits; this module does not import it."""
        most = {} if self.most is None else {"le": self.most}
        return handler(source) | {"ge": self.least} | most


Share = Annotated[float, Limits(0, 1)]
Amount = Annotated[float, Limits(0)]
Count = Annotated[int, Limits(0)]
#: A number that is finite.
Number = Annotated[float, Limits(-sys.float_info.max, sys.float_info.max)]


def as_row(row: "DataclassInstance", optional: Collection[str] = ()) -> Row:
    """Return a row as the dict that is written as JSON.

    Parameters
    ----------
    row : dataclass
        An instance of a class of this module.
    optional : collection of str
        Keys that are left out where their value is None, at any depth.
    """
    return {
        key: _plain(value, optional)
        for key, value in vars(row).items()
        if value is not None or key not in optional
    }


def _plain(value: Any, optional: Collection[str]) -> Any:
    # Most values are scalars; dataclasses.asdict copies each deeply, which takes longer.
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(each, optional) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each, optional) for each in value]
    return as_row(value, optional)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The distribution of a metric over clients, on their held-out shares (measured).

    ``mean`` is the metric over all their examples together; the quantiles are unweighted.
    """

    mean: float
    min: float
    p10: float
    median: float
    p90: float
    max: float


@dataclass(frozen=True, kw_only=True)
class ClientScore:
    """The primary metric of one client on its held-out examples (measured)."""

    partition: Count
    device: str
    examples: Count
    value: Number


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One line of ``rounds.jsonl``; round 0 is the model before training.

    Bytes and energy are of the tasks that ended in this round, evaluation included; an instruction
    to a device that was away was not sent. Where a real device went away in a round its
    instruction counts, whether or not it arrived, which the server cannot know. ``tasks`` and
    ``failures`` count the round's training by how, and why, it ended, without what did not occur;
    ``failed`` is all that gave the server nothing to judge: failed, away, late and dropped
    together. Both clocks are cumulative. ``stopped`` says why the
    run ended with this round although others were to come; ``diverged``, that the model was
    evaluated and its loss was not finite. ``client_scores`` are the clients' that evaluated, by
    partition. Older runs have accuracies and no other metrics, and no scores.
    """

    round: Count
    accuracy: Share | None = None
    loss: float | None = None
    client_accuracy: Spread | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    client_metrics: Mapping[str, Spread] = field(default_factory=dict)
    train_loss: float | None = None
    density: Share
    bytes_up: Count
    bytes_down: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    trained: Count
    failed: Count
    rejected: Count
    tasks: Mapping[TaskStatus, Count] = field(default_factory=dict)
    failures: Mapping[FailureKind, Count] = field(default_factory=dict)
    energy_joules: Amount
    stopped: str | None = None
    diverged: bool = False
    client_scores: tuple[ClientScore, ...] = ()

    def value(self, metric: Metric) -> float | None:
        """Return a metric on the central test set, or None."""
        return self.accuracy if metric == ACCURACY else self.metrics.get(metric.name)

    def spread(self, metric: Metric) -> Spread | None:
        """Return how a metric spreads over the clients, or None."""
        return self.client_accuracy if metric == ACCURACY else self.client_metrics.get(metric.name)


@dataclass(frozen=True, kw_only=True)
class ClientReport:
    """What a real device said of its part in a round: a claim, of which only the range is checked.

    Its work is modelled, as in :class:`mest_fed.devices.Work`. ``seconds`` are its own, to receive
    and to train, without sending (measured); ``measured_peak_bytes`` is how far its memory rose.
    None is what it did not say.
    """

    dense_flops: Amount
    sparse_flops: Amount
    moved_bytes: Amount
    core_seconds: Amount
    python_seconds: Amount = 0.0
    seconds: Amount | None = None
    predicted_peak_bytes: Amount | None = None
    measured_peak_bytes: Amount | None = None


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One line of ``clients.jsonl``: one client's part in one round; times are modelled.

    ``start_seconds`` is the virtual time at which the device began, ``setup_seconds`` what starting
    the process that trains takes there. Rows of Flower apps have a
    ``type``, ``train`` or ``evaluate``, and lack :data:`APP_CLIENTS_LACK`. A row without a type is
    of training. Times of a deployed run are real: ``train_seconds`` is from the instruction to the
    reply, and ``reported`` what the device itself said, which other rows lack.
    """

    round: Count
    type: str | None = None
    partition: Count
    device: str
    status: TaskStatus
    failure: FailureKind | None = None
    reason: str | None = None
    staleness: Count | None = None
    examples: Count | None = None
    presented: Count | None = None
    train_loss: float | None = None
    bytes_down: Count
    bytes_up: Count
    start_seconds: Amount | None = None
    download_seconds: Amount
    setup_seconds: Amount = 0.0
    train_seconds: Amount
    upload_seconds: Amount
    energy_joules: Amount
    density: Share | None = None
    reported: ClientReport | None = None

    @property
    def seconds(self) -> float:
        """All parts of the task together (modelled)."""
        working = self.setup_seconds + self.train_seconds
        return self.download_seconds + working + self.upload_seconds


#: Keys that the rows of our own clients lack, those of simulated ones, and those of a Flower app's.
OUR_CLIENTS_LACK = frozenset({"type"})
SIMULATED_LACK = OUR_CLIENTS_LACK | {"reported"}
APP_CLIENTS_LACK = frozenset(
    {"staleness", "examples", "presented", "train_loss", "density", "reported"}
)


@dataclass(frozen=True, kw_only=True)
class Watts:
    """What a whole device draws while it computes, and while it sends or receives."""

    compute: Amount
    radio: Amount


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The devices of one profile, which train under one plan.

    ``recompute`` and ``saved`` are how training saves memory, as in
    :class:`mest_fed.memory.MemoryOptions`; ``shortfall_bytes`` is 0 unless the plan was made anew,
    as in :class:`mest_fed.memory.Plan`.
    """

    profile: str
    title: str
    clients: Count
    budget_bytes: Count
    predicted_peak_bytes: Count
    measured_peak_bytes: Count | None = None
    shortfall_bytes: Count = 0
    density: Share
    micro_batch: Count
    recompute: str | None = None
    saved: str | None = None
    parts: Mapping[str, Count]
    plan: str
    watts: Watts | None = None

    @property
    def peak_bytes(self) -> int:
        """The measured peak where there is one, the predicted one otherwise."""
        return self.measured_peak_bytes or self.predicted_peak_bytes


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the final global model; a dense one has density 1, and the reason for it."""

    name: str
    weights: Count
    density: Share
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """``summary.json``, written when a run has ended.

    ``tasks`` and ``failures`` count the tasks of the whole run by how, and why, they ended; a kind
    of failure that did not occur is left out. ``devices_asked`` is how many of ``devices`` had a
    task. ``deployed`` says that they were real. ``kept`` is the rule by which the model was kept.
    ``why_torch`` says why torch trained, at least on some devices, though programs were asked for;
    runs of earlier versions, and those whose programs trained, lack it.
    ``diverged_round`` is the first round since which the loss of the model, up to the one that was
    kept, was not finite.
    """

    preset: str
    seed: int
    rounds: Count
    dataset: str
    model: str
    method: str
    mutation: str | None
    scheme: str
    target_density: Share
    achieved_density: Share
    task: str = "classification"
    primary_metric: Metric = ACCURACY
    final_metrics: Mapping[str, float] = field(default_factory=dict)
    final_accuracy: Share | None
    best_round: Count | None = None
    kept: str = "last"
    kept_round: Count | None = None
    stopped: str | None = None
    diverged_round: Count | None = None
    #: How far the run has come, where it has not ended; in no file, but in reports.
    unfinished: str | None = None
    final_client_accuracy: Spread | None
    bytes_up: Count
    bytes_down: Count
    virtual_seconds: Amount
    wall_seconds: Amount
    clients_trained: Count
    clients_failed: Count
    clients_rejected: Count
    energy_joules: Amount
    over_budget: Count
    out_of_memory: Count | None = None
    tasks: Mapping[TaskStatus, Count] = field(default_factory=dict)
    failures: Mapping[FailureKind, Count] = field(default_factory=dict)
    devices: Count | None = None
    devices_asked: Count | None = None
    deployed: bool = False
    why_torch: str | None = None
    tiers: tuple[Tier, ...]
    layers: tuple[Layer, ...]
    dense_bytes: Count
    model_sha256: str
    versions: Mapping[str, str]

    @property
    def final_value(self) -> float | None:
        """The primary metric of the final model on the central test set, or None."""
        metric = self.primary_metric
        return self.final_accuracy if metric == ACCURACY else self.final_metrics.get(metric.name)

    @property
    def warning(self) -> str | None:
        """What a person must know first, in one line: that the run came to nothing, and why."""
        metric, rate = self.primary_metric, "a lower training.learning_rate may help"
        if not self.clients_trained:
            lost = in_words(self.tasks) or "no device was asked"
            text = (
                "nothing was trained: the server accepted no update in "
                f"{number_of(self.rounds, 'round')} ({lost}); "
                f"the {metric.name} is that of the first weights"
            )
            diverged = self.failures.get(FailureKind.NOT_FINITE)
            return text + (f"; the loss of {diverged} was not finite: {rate}" if diverged else "")
        if self.diverged_round is not None:
            return (
                "the run diverged: the loss of the model that it leaves is not finite, from round "
                f"{self.diverged_round} on; {rate}"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run was computed.

    ``cores`` are those that the process was allowed, ``machine_cores`` all that there are; memory
    is the machine's.
    """

    system: str
    architecture: str
    cpu: str
    cores: Count
    machine_cores: Count
    memory_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that a run has otherwise than its preset, or the defaults; both as text."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """``provenance.json``, written before the first round; runs of earlier versions lack it.

    ``started`` is an ISO 8601 time in UTC. ``base`` is the preset that ``changes`` are counted
    from; empty: the defaults.
    """

    command: str
    started: str
    machine: Machine
    versions: Mapping[str, str]
    base: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """``labels.json``: examples by class, a row for each of ``partitions``, of so many devices.

    Held-out examples are included. Runs of earlier versions, and tasks without classes, lack it.
    """

    classes: tuple[str, ...]
    devices: Count
    partitions: tuple[Count, ...]
    counts: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        """Check that it is a table."""
        if len(self.counts) != len(self.partitions):
            raise ValueError(f"{len(self.counts)} counts for {len(self.partitions)} partitions")
        if any(len(row) != len(self.classes) for row in self.counts):
            raise ValueError(f"a row of counts has not {len(self.classes)} classes")


@dataclass(frozen=True, kw_only=True)
class AppRoundRow:
    """One line of ``rounds.jsonl`` of a Flower app; the same units as in :class:`RoundRow`.

    Metrics are the means of the clients' replies, weighted by their examples. ``tasks`` and
    ``failures`` count tasks of training and evaluation, those that ended in the round.
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
