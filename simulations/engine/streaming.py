"""One exchange with many devices: messages in, replies out, in order, as they are read."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message

from mest_fed.folding import Fold, Partial
from simulations.engine.dispatch import Dispatcher
from simulations.engine.executor import Executor
from simulations.engine.launches import Launch
from simulations.engine.worker import Job, Missed


@dataclass
class Streaming:
    """Runs an exchange.

    Parameters
    ----------
    executor : Executor
        Where clients run.
    dispatcher : Dispatcher
        Begins and ends instructions.
    last_of : callable
        Gives the launch that a node still has on its way, if any.
    fold : Fold, optional
        Sums replies in the workers.
    timeout : float, optional
        As for :meth:`simulations.engine.grid.FleetGrid.send_and_receive`.
    """

    executor: Executor
    dispatcher: Dispatcher
    last_of: Callable[[int], Launch | None]
    fold: Fold[Message] | None = None
    timeout: float | None = None

    def replies(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        """Run messages in waves, each of distinct nodes: a node's second message needs its first.

        An exchange ends where its reader stops.
        """
        self._until = self.dispatcher.now
        self._total: Partial | None = None
        self._began = time.monotonic()
        try:
            for _, wave in itertools.groupby(_with_wave(messages), key=lambda pair: pair[0]):
                yield from self._run_wave(message for _, message in wave)
        finally:
            self.dispatcher.advance(self._until)
        if self.fold is not None:
            self.fold.collect(self._total)

    def _run_wave(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        launches: deque[Launch] = deque()
        exchange = self.executor.open(
            self._jobs(messages, launches), fold=self.fold, timeout=self._seconds_left()
        )
        try:
            while (outcome := exchange.take()) is not None:
                yield from self._refused(launches)
                if isinstance(outcome, Missed):
                    launches.popleft()  # no reply, and the device's state stays as it was
                    continue
                launches[0].outcome = outcome
                yield self._land(launches.popleft())
            yield from self._refused(launches)
            wave_total = exchange.total()
            if self._total is None:
                self._total = wave_total
            elif wave_total is not None:
                self._total = self._total.add(wave_total)
        finally:
            exchange.close()

    def _seconds_left(self) -> float | None:
        """Return the seconds of wall-clock time that are left for all waves together."""
        if self.dispatcher.virtual or self.timeout is None:
            return None
        return max(0.0, self._began + self.timeout - time.monotonic())

    def _jobs(self, messages: Iterable[Message], launches: deque[Launch]) -> Iterator[Job]:
        for message in messages:
            launch, job = self.dispatcher.launch(
                message,
                within=math.inf if self.timeout is None else self.timeout,
                after=self.last_of(message.metadata.dst_node_id),
            )
            launches.append(launch)
            if job is not None:
                yield job

    def _refused(self, launches: deque[Launch]) -> Iterator[Message]:
        while launches and launches[0].outcome is not None:
            yield self._land(launches.popleft())

    def _land(self, launch: Launch) -> Message:
        self._until = max(self._until, launch.arrival)
        return self.dispatcher.land(launch)


def _with_wave(messages: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Count waves: a new one begins at a node that the present one has."""
    wave, members = 0, set[int]()
    for message in messages:
        node_id = message.metadata.dst_node_id
        if node_id in members:
            wave += 1
            members.clear()
        members.add(node_id)
        yield wave, message
