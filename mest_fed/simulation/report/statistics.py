"""What the report counts from a run's rows: traffic, tasks by device, reasons of failure."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mest_fed.run_rows.rounds import ClientRow
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.runs import Device, FleetRun, Run


@dataclass(frozen=True)
class Traffic:
    """Bytes of a run's messages.

    Parameters
    ----------
    up, down : int
        Of all messages, evaluation included.
    training : int
        Of the messages of training, up and down.
    dense : int
        What those would be with the dense model in fp32.
    """

    up: int
    down: int
    training: int
    dense: int

    @property
    def total(self) -> int:
        """Bytes up and down."""
        return self.up + self.down

    @property
    def saving(self) -> float | None:
        """How many times more the dense model would have cost; None when nothing was sent."""
        return self.dense / self.training if self.training and self.dense else None


def traffic(run: Run) -> Traffic:
    """Count the run's traffic; each message of training would carry ``dense_bytes``."""
    sizes = [size for task in run.tasks for size in (task.bytes_down, task.bytes_up) if size]
    summary = run.summary
    dense = len(sizes) * summary.dense_bytes
    return Traffic(summary.bytes_up, summary.bytes_down, sum(sizes), dense)


@dataclass(frozen=True)
class DeviceTasks:
    """All tasks of the devices of one profile."""

    title: str
    tasks: tuple[ClientRow, ...]

    @property
    def completed(self) -> list[ClientRow]:
        """The tasks whose update was accepted."""
        return [task for task in self.tasks if task.status == TaskStatus.OK]


def tasks_by_device(run: FleetRun) -> list[DeviceTasks]:
    """Group tasks by device profile: the tiers' order first, then profiles that no tier names."""
    groups: dict[str, list[ClientRow]] = {tier.profile: [] for tier in run.devices}
    for task in run.tasks:
        groups.setdefault(task.device, []).append(task)
    titles = {tier.profile: tier.title for tier in run.devices}
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


def lost_by_reason(run: FleetRun) -> list[LostTasks]:
    """Count tasks without an update by reason, most frequent first.

    The reason is the kind of the failure; errors of clients, and updates that the server refused,
    are told apart by what they say.
    """
    counts: dict[str, Counter[TaskStatus]] = defaultdict(Counter)
    for task in run.tasks:
        if task.status != TaskStatus.OK:
            kind = task.failure
            reason = kind.explain(task.reason) if kind else task.reason or "no reason given"
            counts[reason][task.status] += 1
    lost = [LostTasks(reason, dict(count)) for reason, count in counts.items()]
    return sorted(lost, key=lambda entry: (-entry.total, entry.reason))


def status_counts(run: FleetRun) -> dict[TaskStatus, int]:
    """Return how many tasks of a run ended in which way; every status is there."""
    counts = run.task_counts or Counter(task.status for task in run.tasks)
    return {status: counts.get(status, 0) for status in TaskStatus}


def rounds_without_update(run: Run) -> list[int]:
    """Return the rounds of training in which the server accepted no update."""
    return [row.round for row in run.rounds if row.round > 0 and row.trained == 0]


_ROUNDING = 1e-6  # sums of many rows agree no better


@dataclass(frozen=True)
class EnergyUse:
    """Joules of one tier, or of the evaluations of all.

    ``other`` is what is not divided: all of it in runs of earlier versions and in evaluations.
    """

    title: str
    compute: float
    radio: float
    other: float
    tasks: int = 0

    @property
    def total(self) -> float:
        """Joules in all."""
        return self.compute + self.radio + self.other


def energy_by_tier(run: FleetRun) -> list[EnergyUse]:
    """Divide the run's energy; what its tasks do not account for went into evaluations."""
    tiers = {tier.profile: tier for tier in run.devices}
    uses = [
        _use(group.title, group.tasks, tiers.get(group.tasks[0].device))
        for group in tasks_by_device(run)
        if any(task.energy_joules is not None for task in group.tasks)
    ]
    whole = run.energy_joules
    rest = whole - sum(use.total for use in uses)
    if rest > _ROUNDING * whole:
        uses.append(EnergyUse("evaluations", 0.0, 0.0, rest))
    return uses


def _use(title: str, tasks: tuple[ClientRow, ...], tier: Device | None) -> EnergyUse:
    tasks = tuple(task for task in tasks if task.status is not TaskStatus.AWAY)  # they drew nothing
    joules = sum(task.energy_joules or 0.0 for task in tasks)
    if tier is None or tier.watts is None:
        return EnergyUse(title, 0.0, 0.0, joules, len(tasks))
    compute = tier.watts.compute * sum(task.setup_seconds + task.train_seconds for task in tasks)
    radio = tier.watts.radio * sum(task.download_seconds + task.upload_seconds for task in tasks)
    other = joules - compute - radio
    return EnergyUse(
        title, compute, radio, other if other > _ROUNDING * joules else 0.0, len(tasks)
    )


def energy_over_time(run: FleetRun) -> list[tuple[float, float]]:
    """Return (seconds, joules so far as they are known) at the end of each round."""
    sums = accumulate(row.energy_joules or 0.0 for row in run.rounds)
    return [(row.virtual_seconds, total) for row, total in zip(run.rounds, sums, strict=True)]


def lost_energy(run: FleetRun) -> float:
    """Return the joules of tasks that gave no update."""
    return sum(task.energy_joules or 0.0 for task in run.tasks if task.status != TaskStatus.OK)


#: What a device can be doing while it has something to do with a round.
PHASES = ("downloading", "starting", "training", "sending", "waiting", "away")
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


def timeline(run: FleetRun) -> Timeline | None:
    """Follow the devices of the last rounds; None where no task says when it began."""
    ends = {row.round: row.virtual_seconds for row in run.rounds}
    numbers = [number for number in ends if number > 0][-_MOST_ROUNDS:]
    if not numbers:
        return None
    begin, end = ends.get(numbers[0] - 1, 0.0), ends[numbers[-1]]
    tasks: dict[tuple[str, int], list[ClientRow]] = {}
    for task in run.tasks:
        if task.start_seconds is not None and task.start_seconds < end:
            tasks.setdefault((task.device, task.partition), []).append(task)
    titles = {tier.profile: tier.title for tier in run.devices}
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
    tasks: Sequence[ClientRow], ends: dict[int, float], begin: float, end: float
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


def _spans(task: ClientRow, free: float) -> Iterator[Span]:
    """Yield a task's phases, and what the device does until its round is over, or its next task."""
    start = _start(task)
    if task.status == TaskStatus.AWAY:
        yield Span("away", start, free)
        return
    parts = (
        *(task.download_seconds, task.setup_seconds),
        *(task.train_seconds, task.upload_seconds),
    )
    for phase, seconds in zip(PHASES, parts, strict=False):
        yield Span(phase, start, start + seconds)
        start += seconds
    yield Span("away" if task.status == TaskStatus.DROPPED else "waiting", start, free)


def _start(task: ClientRow) -> float:
    return task.start_seconds or 0.0


def _evenly(tiers: list[list[DeviceLine]]) -> list[DeviceLine]:
    """Choose as many devices of each tier, as far as it has them, spread over its workers."""
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
