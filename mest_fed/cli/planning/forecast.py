"""What ``mest-fed simulate --dry-run`` works out: a run as it would be, without starting it.

Times are the virtual clock's own: what a client would report as its work, at the rates of its
device, and its messages.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import MutationPlace
from mest_fed.cli.planning.report import DevicePlan, step_time
from mest_fed.cli.planning.request import PlanRequest
from mest_fed.cli.planning.traffic import StartingModel, Traffic
from mest_fed.devices import download_seconds, train_seconds, upload_seconds
from mest_fed.devices.cost import rate_of
from mest_fed.devices.step_time import StepTime
from mest_fed.simulation.checkpoint import RunFacts
from mest_fed.simulation.simulate import Simulation
from mest_fed.task import Task

Counts = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class DeviceForecast:
    """A round of the devices of one kind, at the density of their plan; modelled.

    Parameters
    ----------
    device : DevicePlan
        The kind, its number and its plan.
    compiled : bool
        Whether its steps are a program; else torch trains.
    examples : int array
        Training examples of each of its devices, or of any of them where all have as many.
    traffic : Traffic
        Of one of them.
    sparse : Traffic
        The part of it that grows with the density.
    seconds, growing : array
        Virtual time of a round for each number of examples, and the part that grows so.
    evaluation : float
        Virtual time of an evaluation.
    """

    device: DevicePlan
    compiled: bool
    examples: Counts
    traffic: Traffic
    sparse: Traffic
    seconds: Seconds
    growing: Seconds
    evaluation: float

    def seconds_above(self, ratio: float) -> Seconds:
        """Return its times while the mask holds ``ratio`` times what it ends at."""
        return self.seconds + self.growing * (ratio - 1)

    def traffic_above(self, ratio: float) -> Traffic:
        """Return its traffic while the mask holds ``ratio`` times what it ends at."""
        return self.traffic + self.sparse * (ratio - 1)


class RunForecast:
    """A simulation that was opened and does not start.

    Parameters
    ----------
    run : Simulation
        The run.

    Raises
    ------
    InputError
        As :meth:`Simulation.run` would, of what it finds before it starts.
    """

    def __init__(self, run: Simulation) -> None:
        self.run, self.config = run, run.config
        facts = None if run.resumed is None else RunFacts.read(run.resumed.facts)
        self.name = run.preset if facts is None else facts.preset
        #: Rounds that were done before.
        self.done = 0 if facts is None else facts.round
        if facts is None:
            run.folder.check_writable()

    @property
    def task(self) -> Task:
        """The run's task."""
        return self.run.task

    @property
    def title(self) -> str:
        """Say what is trained."""
        return PlanRequest(self.name, self.task).title

    @property
    def rounds(self) -> range:
        """The rounds that are to be done, from 1."""
        return range(self.done + 1, self.config.run.rounds + 1)

    @cached_property
    def why_torch(self) -> str | None:
        """Why torch trains, though programs are asked for; None if it does not."""
        return self.task.why_torch(self.run.fleet.plans)

    @cached_property
    def examples(self) -> Counts:
        """Training examples of each device, or one number where all have as many."""
        task = self.task
        partitions = range(1 if task.draws_examples else len(task.devices))
        return np.array([task.example_counts(each)[0] for each in partitions], np.int64)

    @cached_property
    def devices(self) -> list[DeviceForecast]:
        """A forecast for each kind of device, the smallest budget first."""
        task, plans, kinds = self.task, self.run.fleet.plans, self.run.fleet.kinds
        start = StartingModel(task)
        clock = step_time(task, None)
        found = []
        for code, (name, count) in enumerate(task.devices.counts.items()):
            own = self.examples
            if not task.draws_examples:
                own = own[task.devices.codes == code]
            plan = DevicePlan(name, kinds[name], count, plans[name])
            found.append(_forecast(task, start, clock, plan, own))
        return sorted(found, key=lambda each: each.device.plan.budget)

    @property
    def asked(self) -> int | None:
        """Tasks to train in a round; None where the mode of the rounds does not say."""
        server = self.config.server
        if server.mode == "sync":
            return math.ceil(server.clients_per_round * server.over_selection)
        return server.buffer if server.mode == "buffered" else None

    @property
    def task_traffic(self) -> Traffic:
        """Traffic of a task to train at the target density: the mean over the fleet."""
        return self._task_traffic(1.0)

    def _task_traffic(self, ratio: float) -> Traffic:
        parts = (each.traffic_above(ratio) * each.device.count for each in self.devices)
        return sum(parts, Traffic()) * (1 / len(self.task.devices))

    @property
    def round_traffic(self) -> Traffic | None:
        """Traffic of a round at the target density, if all who are asked reply."""
        return None if self.asked is None else self.task_traffic * self.asked

    @property
    def run_traffic(self) -> Traffic | None:
        """Traffic of all rounds to be done, evaluations on clients and soft bounds included."""
        if self.asked is None:
            return None
        server, total = self.config.server, Traffic()
        evaluated = min(server.evaluate_clients, self.config.fleet.devices)
        for number in self.rounds:
            total += self._task_traffic(self._above_target(number)) * self.asked
            if self._evaluates_clients(number):  # they reply by a few numbers
                task = self._task_traffic(self._above_target(number + 1))
                total += Traffic(task.down, 0.0, task.masks) * evaluated
        return total

    def _evaluates_clients(self, number: int) -> bool:
        every = self.config.server.evaluate_clients_every
        return every > 0 and (number % every == 0 or number == self.config.run.rounds)

    def _above_target(self, number: int) -> float:
        """Return the density of the global model in a round as a multiple of the target's.

        A soft bound is above it only where the server mutates: clients end at the target, as does
        the run. What follows a round's mutation is of the next round.
        """
        interval, ended = self.task.interval, number > self.config.run.rounds
        if self.config.sparsity.mutation != MutationPlace.SERVER or ended:
            return 1.0
        mutated = (number - 1) // interval.every * interval.every
        if not interval.due(mutated):
            return 1.0
        return self.task.method.bounds(interval.progress(mutated)).ceiling

    @cached_property
    def slowest(self) -> float:
        """Virtual seconds of a round of the slowest device of the fleet."""
        return max(float(each.seconds.max()) for each in self.devices)

    @cached_property
    def round_seconds(self) -> float | None:
        """Virtual seconds of a round at the target density.

        The mean over cohorts drawn uniformly, of devices that are there and reply. None unless a
        round waits for all whom it asks.
        """
        server = self.config.server
        waits = server.mode == "sync" and server.over_selection == 1
        return self._round_seconds(1.0) if waits else None

    @property
    def run_seconds(self) -> float | None:
        """Virtual seconds of all rounds to be done, as :attr:`run_traffic`."""
        if self.round_seconds is None:
            return None
        ratios = Counter(self._above_target(number) for number in self.rounds)
        trained = sum(self._round_seconds(ratio) * times for ratio, times in ratios.items())
        asked = min(self.config.server.evaluate_clients, self.config.fleet.devices)
        timed = [(each.evaluation, each.device.count) for each in self.devices]
        evaluations = sum(map(self._evaluates_clients, self.rounds))
        return trained + evaluations * self._waited(timed, asked)

    def _round_seconds(self, ratio: float) -> float:
        drawn = self.task.draws_examples
        timed = [
            (float(seconds), each.device.count if drawn else 1)
            for each in self.devices
            for seconds in each.seconds_above(ratio)
        ]
        return self._waited(timed, self.config.server.clients_per_round)

    def _waited(self, timed: Sequence[tuple[float, int]], asked: int) -> float:
        return min(mean_of_longest(timed, asked), self.config.fleet.deadline or math.inf)


def _forecast(
    task: Task, start: StartingModel, clock: StepTime, device: DevicePlan, examples: Counts
) -> DeviceForecast:
    plan, profile = device.plan, device.profile
    task = task.at_width(plan.density)
    task.load(start.state(plan.density))
    traffic, sparse = start.traffic(plan, round(examples.mean()))
    planned, scheme = clock.work(plan.shape), task.config.sparsity.scheme
    epochs, batch = task.config.training.local_epochs, task.config.training.batch_size
    works = [
        planned.epoch(each, batch) * epochs + task.round_work(epochs * each)
        for each in examples.tolist()
    ]
    answers = task.forward_work(round(task.example_counts(0)[1]))
    trained = np.array([train_seconds(profile, each, scheme) for each in works])
    growing = np.array([each.sparse_flops for each in works]) / rate_of(profile, scheme)
    download, upload = download_seconds(profile, traffic.down), upload_seconds(profile, traffic.up)
    started = profile.message_seconds if task.config.behaviour.process_per_message else 0.0
    growing += sparse.down / profile.download_rate + sparse.up / profile.upload_rate
    evaluated = started + train_seconds(profile, answers, scheme)
    return DeviceForecast(
        device,
        planned.compiled,
        examples,
        traffic,
        sparse,
        download + started + trained + upload,
        growing,
        download + evaluated + upload_seconds(profile, 0),
    )


def mean_of_longest(timed: Sequence[tuple[float, int]], drawn: int) -> float:
    """Return the mean of the longest of some times, drawn uniformly without putting back.

    Parameters
    ----------
    timed : sequence of (float, int)
        Times, and how many devices have each.
    drawn : int
        How many are drawn.
    """
    total, below, before, mean = sum(count for _, count in timed), 0, 0.0, 0.0
    for time, count in sorted(timed):
        below += count
        # All of them are among those of this time or less.
        share = math.exp(_log_choices(below, drawn) - _log_choices(total, drawn))
        mean += time * (share - before)
        before = share
    return mean


def _log_choices(of: int, drawn: int) -> float:
    if drawn > of:
        return -math.inf
    return math.lgamma(of + 1) - math.lgamma(drawn + 1) - math.lgamma(of - drawn + 1)
