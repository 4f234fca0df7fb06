"""What the report counts from a run's rows: traffic, tasks by device, reasons of failure."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mest_fed.schema import FailureKind, TaskStatus
from simulations.report.schema import Run, TaskRow


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of a run, and what the same transfers would cost with the dense model."""

    up: int
    down: int
    dense: int

    @property
    def total(self) -> int:
        """Bytes up and down."""
        return self.up + self.down

    @property
    def saving(self) -> float | None:
        """How many times more the dense model would have cost; None when nothing was sent."""
        return self.dense / self.total if self.total and self.dense else None


def traffic(run: Run) -> Traffic:
    """Count the run's traffic; each transfer that took place would carry ``dense_bytes``."""
    transfers = sum((task.bytes_down > 0) + (task.bytes_up > 0) for task in run.tasks)
    summary = run.summary
    return Traffic(summary.bytes_up, summary.bytes_down, transfers * summary.dense_bytes)


@dataclass(frozen=True)
class DeviceTasks:
    """All tasks of the devices of one profile."""

    title: str
    tasks: tuple[TaskRow, ...]

    @property
    def completed(self) -> list[TaskRow]:
        """The tasks whose update was accepted."""
        return [task for task in self.tasks if task.status == TaskStatus.OK]


def tasks_by_device(run: Run) -> list[DeviceTasks]:
    """Group tasks by device profile: the tiers' order first, then profiles that no tier names."""
    groups: dict[str, list[TaskRow]] = {tier.profile: [] for tier in run.summary.tiers}
    for task in run.tasks:
        groups.setdefault(task.device, []).append(task)
    titles = {tier.profile: tier.title for tier in run.summary.tiers}
    return [
        DeviceTasks(titles.get(device, device), tuple(tasks))
        for device, tasks in groups.items()
        if tasks
    ]


@dataclass(frozen=True)
class LostTasks:
    """Tasks that gave no update, for one reason: how many ended with which status."""

    reason: str
    counts: Mapping[TaskStatus, int]

    @property
    def total(self) -> int:
        """Number of tasks."""
        return sum(self.counts.values())


#: Failures of which the reason says more than the kind does.
_OPEN = (None, FailureKind.CLIENT_ERROR, FailureKind.WORKER_DIED, FailureKind.UPDATE_REJECTED)


def lost_by_reason(run: Run) -> list[LostTasks]:
    """Count tasks without an update by reason, most frequent first.

    The reason is the kind of the failure; errors of clients, and updates that the server refused,
    are told apart by what they say.
    """
    counts: dict[str, Counter[TaskStatus]] = defaultdict(Counter)
    for task in run.tasks:
        if task.status != TaskStatus.OK:
            kind = task.failure
            if kind is None or kind in _OPEN:
                reason = task.reason or (kind.label if kind else "no reason given")
            else:
                reason = kind.label
            counts[reason][task.status] += 1
    lost = [LostTasks(reason, dict(count)) for reason, count in counts.items()]
    return sorted(lost, key=lambda entry: (-entry.total, entry.reason))


def status_counts(run: Run) -> dict[TaskStatus, int]:
    """Count the tasks of a run by how they ended; every status is there."""
    counts = Counter(task.status for task in run.tasks)
    return {status: counts[status] for status in TaskStatus}


def rounds_without_update(run: Run) -> list[int]:
    """Return the rounds of training in which the server accepted no update."""
    return [row.round for row in run.rounds if row.round > 0 and row.trained == 0]
