"""What became of a round: what the server knows of each client, and the clock of each device."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING, Logger

from flwr.app import MessageType

from mest_fed.run_rows.rounds import ClientReport, Spread
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.training import Metrics, Objective


@dataclass
class ClientOutcome:
    """One client's part in a round of training.

    Parameters
    ----------
    node_id, partition, device : int, int, str
        Who.
    failure : FailureKind or None
        Why the server took no update of it; None if it did.
    reason : str or None
        The same for people.
    examples, presented : int
        Training examples it has, and presentations in this round.
    counted : float
        What the presentations count in the mean loss: examples, or tokens and the like.
    train_loss : float or None
        Mean loss over the presentations.
    density : float or None
        Of what it sent.
    bytes_down, bytes_up : int
        Content of the messages; the first was not received by a device that was away.
    staleness : int
        Rounds that ended between the instruction and the reply.
    score : float or None
        The primary metric on its held-out examples, which ``examples`` then are; None where it did
        not evaluate, or it was not finite.
    reported : ClientReport or None
        What a real device said of its part; None of others.
    """

    node_id: int
    partition: int
    device: str
    failure: FailureKind | None = None
    reason: str | None = None
    examples: int = 0
    presented: int = 0
    counted: float = 0.0
    train_loss: float | None = None
    density: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    staleness: int = 0
    score: float | None = None
    reported: ClientReport | None = None

    @property
    def status(self) -> TaskStatus:
        """How its task ended."""
        return TaskStatus.OK if self.failure is None else self.failure.status

    def fail(self, failure: FailureKind, reason: str) -> None:
        """Note why there is no update of it."""
        self.failure, self.reason = failure, reason

    def note(self, totals: Metrics, density: float) -> None:
        """Note what a good update says of itself."""
        self.presented, self.counted = totals.examples, totals.count
        self.train_loss = totals.loss / (totals.count or 1)
        self.density = density

    def note_score(self, totals: Metrics, objective: Objective) -> None:
        """Note what a good evaluation says of the primary metric."""
        self.examples = totals.examples
        if totals.count:
            value = totals.values(objective)[objective.primary.name]
            self.score = value if math.isfinite(value) else None


def log_failed(log: Logger, what: str, outcome: ClientOutcome) -> None:
    """Log why a task gave nothing; that a device may not train now is no warning."""
    ordinary = outcome.failure is not None and outcome.failure.ordinary
    level, how = (INFO, "declined") if ordinary else (WARNING, "failed")
    log.log(level, "%s %s: %s", what, how, outcome.reason)


@dataclass(frozen=True)
class ClientTiming:
    """What one instruction cost one device (modelled).

    The device downloads from its start on, starts the process that trains, trains, and uploads;
    times are those that it came to, so that a device that dropped out ends within one of the four.

    Parameters
    ----------
    node_id : int
        The device.
    message_type : str
        For example ``train``.
    failure : FailureKind or None
        Why the device gave no result; None if it gave one.
    reason : str
        The same for people; empty if it gave one.
    start : float
        Virtual time at which the device began.
    bytes_down, bytes_up : int
        Content of the instruction and of the reply. A client that failed or dropped out sends
        nothing.
    download_seconds, setup_seconds, train_seconds, upload_seconds : float
        Time of each part. A failed client is charged its download alone.
    energy_joules : float or None
        Energy of the four parts; waiting for others is not counted. None where the power of the
        device is not known.
    battery : float or None
        Share of a full charge at the start; None on mains power, or where no battery is modelled.
    """

    node_id: int
    message_type: str
    failure: FailureKind | None = None
    reason: str = ""
    start: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    download_seconds: float = 0.0
    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    upload_seconds: float = 0.0
    energy_joules: float | None = 0.0
    battery: float | None = None

    @property
    def status(self) -> TaskStatus:
        """How it ended."""
        return TaskStatus.OK if self.failure is None else self.failure.status

    @property
    def seconds(self) -> float:
        """From the instruction until the device is done with it."""
        working = self.setup_seconds + self.train_seconds
        return self.download_seconds + working + self.upload_seconds


def settled(
    outcomes: Iterable[ClientOutcome], timings: Iterable[ClientTiming], message_type: str
) -> Iterator[tuple[ClientOutcome, FailureKind | None, ClientTiming | None]]:
    """Yield each outcome, why there is no result, and what its device took."""
    by_node = {t.node_id: t for t in timings if t.message_type == message_type}
    for outcome in outcomes:
        timing = by_node.get(outcome.node_id)
        yield outcome, _failure(outcome, timing), timing


def received(outcome: ClientOutcome, failure: FailureKind | None) -> int:
    """Return the bytes of the instruction that reached the device.

    None if it was away, or declined: a node looks whether it may train before it fetches anything.
    """
    untouched = (TaskStatus.AWAY, TaskStatus.DECLINED)
    unread = failure is not None and failure.status in untouched
    return 0 if unread else outcome.bytes_down


def _failure(client: ClientOutcome, timing: ClientTiming | None) -> FailureKind | None:
    """Return why there is no update: the clock knows better why nothing came than the server."""
    judged = client.status in (TaskStatus.OK, TaskStatus.REJECTED, TaskStatus.SURPLUS)
    if judged or timing is None or timing.failure is None:
        return client.failure
    return timing.failure


#: The type of the messages that ask for scores of weights.
SCORE = f"{MessageType.TRAIN}.score"


@dataclass
class RoundRecord:
    """One round.

    Parameters
    ----------
    round : int
        From 1; 0 is the evaluation before training.
    density : float
        Of the global model.
    metrics : dict of str to float
        The task's metrics and the loss on the central test set; empty where it was not evaluated.
        What is not finite, as the loss of a model that diverged, is left out.
    client_metrics : dict of str to Spread
        The same on the clients' held-out examples.
    train_loss : float or None
        Mean over all presentations.
    stopped : str
        Why the run ends with this round although others were to come; empty if it does not.
    diverged : bool
        Whether the model was evaluated and its loss was not finite.
    clients : list of ClientOutcome
        Of the round's cohort; of those who answered in it, where the server does not wait for all.
    evaluations : list of ClientOutcome
        Of the clients that were asked to evaluate.
    scored : list of ClientOutcome
        Of the clients that were asked to score weights before this round, which is the first.
    """

    round: int
    density: float
    metrics: dict[str, float] = field(default_factory=dict)
    client_metrics: dict[str, Spread] = field(default_factory=dict)
    train_loss: float | None = None
    stopped: str = ""
    diverged: bool = False
    clients: list[ClientOutcome] = field(default_factory=list)
    evaluations: list[ClientOutcome] = field(default_factory=list)
    scored: list[ClientOutcome] = field(default_factory=list)

    @property
    def judged(self) -> dict[str, float]:
        """The metrics that speak for the model: central ones, or else the clients' together."""
        together = {name: each.mean for name, each in self.client_metrics.items()}
        return self.metrics or together

    def count(self, *statuses: TaskStatus) -> int:
        """Return how many clients ended with one of these statuses."""
        return sum(client.status in statuses for client in self.clients)

    @property
    def bytes_up(self) -> int:
        """Content of the replies of the round's tasks, evaluation included."""
        return sum(task.bytes_up for task in (*self.clients, *self.evaluations, *self.scored))

    def bytes_down(self, timings: Sequence[ClientTiming] = ()) -> int:
        """Content of the instructions of the round's tasks that devices received.

        Evaluation is included. The clock's timings, where there are any, say which devices were
        away.
        """
        tasks = (
            (self.clients, MessageType.TRAIN),
            (self.evaluations, MessageType.EVALUATE),
            (self.scored, SCORE),
        )
        return sum(
            received(outcome, failure)
            for outcomes, kind in tasks
            for outcome, failure, _ in settled(outcomes, timings, kind)
        )

    @property
    def without_reply(self) -> int:
        """Return how many clients gave the server nothing to judge."""
        judged = (TaskStatus.OK, TaskStatus.REJECTED, TaskStatus.SURPLUS)
        return len(self.clients) - self.count(*judged)


RoundObserver = Callable[[RoundRecord], None]


def finite_only(values: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is not finite."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
