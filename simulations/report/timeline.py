"""What each device did over virtual time, from the rows of its tasks (modelled)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mest_fed.schema import TaskStatus
from simulations.report.schema import Run, TaskRow

#: What a device can be doing while it has something to do with a round.
PHASES = ("downloading", "training", "sending", "waiting", "away")
_MOST_ROUNDS = 12
_MOST_DEVICES = 40


@dataclass(frozen=True)
class Span:
    """A device is in one phase, from ``start`` to ``end`` in virtual seconds."""

    phase: str
    start: float
    end: float


@dataclass(frozen=True)
class DeviceLine:
    """One device: its spans in order, and when tasks of it came to nothing (time, status)."""

    title: str
    partition: int
    spans: tuple[Span, ...]
    losses: tuple[tuple[float, TaskStatus], ...]


@dataclass(frozen=True)
class Timeline:
    """The last rounds of a run.

    Attributes
    ----------
    lines : tuple of DeviceLine
        The devices to show, by tier.
    asked : int
        Devices that had something to do in these rounds.
    rounds : tuple of (int, float)
        Each round and the virtual second at which it ended.
    begin : float
        Virtual second at which the first of them began.
    waited : float
        Share of the time of all devices that were asked, not only of those shown, which they spent
        waiting; time away is left out.
    """

    lines: tuple[DeviceLine, ...]
    asked: int
    rounds: tuple[tuple[int, float], ...]
    begin: float
    waited: float

    @property
    def end(self) -> float:
        """Virtual second at which the last round ended."""
        return self.rounds[-1][1]


def timeline(run: Run) -> Timeline | None:
    """Follow the devices of the last rounds; None where no task says when it began."""
    ends = {row.round: row.virtual_seconds for row in run.rounds}
    numbers = [number for number in ends if number > 0][-_MOST_ROUNDS:]
    if not numbers:
        return None
    begin, end = ends.get(numbers[0] - 1, 0.0), ends[numbers[-1]]
    tasks: dict[tuple[str, int], list[TaskRow]] = {}
    for task in run.tasks:
        if task.start_seconds is not None and task.start_seconds < end:
            tasks.setdefault((task.device, task.partition), []).append(task)
    titles = {tier.profile: tier.title for tier in run.summary.tiers}
    lines: dict[str, list[DeviceLine]] = {profile: [] for profile in titles}
    for (device, partition), theirs in sorted(tasks.items(), key=lambda item: item[0][1]):
        spans, losses = _follow(theirs, ends, begin, end)
        if spans:
            line = DeviceLine(titles.get(device, device), partition, spans, losses)
            lines.setdefault(device, []).append(line)
    everyone = [line for tier in lines.values() for line in tier]
    if not everyone:
        return None
    rounds = tuple((number, ends[number]) for number in numbers)
    shown = tuple(_evenly(list(lines.values())))
    return Timeline(shown, len(everyone), rounds, begin, _waited(everyone))


def _follow(
    tasks: Sequence[TaskRow], ends: dict[int, float], begin: float, end: float
) -> tuple[tuple[Span, ...], tuple[tuple[float, TaskStatus], ...]]:
    """Lay a device's tasks one after the other and cut out what lies between two times."""
    spans: list[Span] = []
    losses: list[tuple[float, TaskStatus]] = []
    tasks = sorted(tasks, key=_start)
    nexts = [_start(task) for task in tasks[1:]] + [end]
    for task, following in zip(tasks, nexts, strict=True):
        done = _start(task) + task.seconds
        spans += _spans(task, min(ends.get(task.round, done), following))
        if task.status not in (TaskStatus.OK, TaskStatus.AWAY) and begin < done:
            losses.append((min(done, end), task.status))
    inside = (Span(s.phase, max(s.start, begin), min(s.end, end)) for s in spans)
    return tuple(span for span in inside if span.start < span.end), tuple(losses)


def _spans(task: TaskRow, free: float) -> Iterator[Span]:
    """Yield a task's phases, and what the device does until its round is over, or its next task."""
    start = _start(task)
    if task.status == TaskStatus.AWAY:
        yield Span("away", start, free)
        return
    parts = (task.download_seconds, task.train_seconds, task.upload_seconds)
    for phase, seconds in zip(PHASES, parts, strict=False):
        yield Span(phase, start, start + seconds)
        start += seconds
    yield Span("away" if task.status == TaskStatus.DROPPED else "waiting", start, free)


def _start(task: TaskRow) -> float:
    return task.start_seconds or 0.0


def _evenly(tiers: list[list[DeviceLine]]) -> list[DeviceLine]:
    """Choose as many devices of each tier, as far as it has them, spread over its members."""
    tiers = [tier for tier in tiers if tier]
    each = 1
    while each < max(map(len, tiers)) and _total(tiers, each + 1) <= _MOST_DEVICES:
        each += 1
    chosen = []
    for tier in tiers:
        count = min(len(tier), each)
        chosen += [tier[index * len(tier) // count] for index in range(count)]
    return chosen[:_MOST_DEVICES]


def _total(tiers: list[list[DeviceLine]], each: int) -> int:
    return sum(min(len(tier), each) for tier in tiers)


def _waited(lines: Sequence[DeviceLine]) -> float:
    spent = dict.fromkeys(PHASES, 0.0)
    for line in lines:
        for span in line.spans:
            spent[span.phase] += span.end - span.start
    there = sum(spent.values()) - spent["away"]
    return spent["waiting"] / there if there else 0.0
