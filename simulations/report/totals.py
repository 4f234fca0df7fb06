"""What the report counts from a run's rows: traffic, tasks by device, reasons of failure."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from simulations.report.schema import Run, TaskRow

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


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
        return [task for task in self.tasks if task.status == "ok"]


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
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of tasks."""
        return sum(self.counts.values())


def lost_by_reason(run: Run) -> list[LostTasks]:
    """Count tasks without an update by reason, most frequent first.

    Reasons that differ in their numbers alone ("needs 24.1 MB", "needs 24.3 MB") are one; where
    they do differ, the numbers are written as an ellipsis.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wordings: dict[str, set[str]] = defaultdict(set)
    for task in run.tasks:
        if task.status in ("failed", "rejected"):
            text = task.reason or "no reason given"
            kind = _NUMBER.sub("…", text)
            counts[kind][task.status] += 1
            wordings[kind].add(text)
    lost = [
        LostTasks(min(wordings[kind]) if len(wordings[kind]) == 1 else kind, dict(count))
        for kind, count in counts.items()
    ]
    return sorted(lost, key=lambda entry: (-entry.total, entry.reason))
