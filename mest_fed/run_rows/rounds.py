"""The rows of a run's rounds: of each round, and of each client's part in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mest_fed.run_rows.row import Amount, Count, Number, Share
from mest_fed.schema import ACCURACY, FailureKind, Metric, TaskStatus


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
    ``failed`` is all that gave the server nothing to judge: failed, away, declined, late and
    dropped together. Both clocks are cumulative. ``stopped`` says why the
    run ended with this round although others were to come; ``diverged``, that the model was
    evaluated and its loss was not finite. ``energy_joules`` is of the devices whose power is known,
    None where that are none. ``client_scores`` are the clients' that evaluated, by
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
    energy_joules: Amount | None
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
    gather_seconds: Amount = 0.0
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
    reply, ``reported`` what the device itself said, which other rows lack, and ``energy_joules``
    None where the power of the device is not known.
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
    energy_joules: Amount | None
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
