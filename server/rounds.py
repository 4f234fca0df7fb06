"""What happened in a round, as plain data for logs, displays and reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mest_fed.schema import FailureKind, TaskStatus

#: Quantiles of the clients' accuracies that are kept.
SPREAD = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


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
    train_loss : float or None
        Mean cross-entropy over the presentations.
    density : float or None
        Of what it sent.
    bytes_down, bytes_up : int
        Content of the messages.
    staleness : int
        Rounds that ended between the instruction and the reply.
    """

    node_id: int
    partition: int
    device: str
    failure: FailureKind | None = None
    reason: str | None = None
    examples: int = 0
    presented: int = 0
    train_loss: float | None = None
    density: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    staleness: int = 0

    @property
    def status(self) -> TaskStatus:
        """How its task ended."""
        return TaskStatus.OK if self.failure is None else self.failure.status

    def fail(self, failure: FailureKind, reason: str) -> None:
        """Note why there is no update of it."""
        self.failure, self.reason = failure, reason

    def note(self, presented: int, loss_sum: float, density: float) -> None:
        """Note what a good update says of itself."""
        self.presented = presented
        self.train_loss = loss_sum / max(1, presented)
        self.density = density


@dataclass
class RoundRecord:
    """One round.

    Parameters
    ----------
    round : int
        From 1; 0 is the evaluation before training.
    density : float
        Of the global model.
    accuracy, loss : float or None
        On the central test set.
    client_accuracy : dict or None
        Mean and quantiles over the clients' held-out examples.
    train_loss : float or None
        Mean over all presentations.
    bytes_up, bytes_down : int
        Content of all messages that were received and sent in the round, evaluation included.
    clients : list of ClientOutcome
        Of the round's cohort; of those who answered in it, where the server does not wait for all.
    """

    round: int
    density: float
    accuracy: float | None = None
    loss: float | None = None
    client_accuracy: dict[str, float] | None = None
    train_loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    clients: list[ClientOutcome] = field(default_factory=list)

    def count(self, *statuses: TaskStatus) -> int:
        """Return how many clients ended with one of these statuses."""
        return sum(client.status in statuses for client in self.clients)

    @property
    def without_reply(self) -> int:
        """Return how many clients gave the server nothing to judge."""
        judged = (TaskStatus.OK, TaskStatus.REJECTED, TaskStatus.SURPLUS)
        return len(self.clients) - self.count(*judged)


RoundObserver = Callable[[RoundRecord], None]


def spread(accuracies: Sequence[float], weights: Sequence[float]) -> dict[str, float]:
    """Return the example-weighted mean and the unweighted quantiles of the clients' accuracies."""
    values = np.asarray(accuracies)
    summary = {"mean": float(np.average(values, weights=weights))}
    return summary | {k: float(np.quantile(values, q)) for k, q in SPREAD.items()}
