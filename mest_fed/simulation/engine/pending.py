"""Instructions on their way in virtual time: pushed, running on their devices, arrived.

Events come in the order of virtual time whatever runs where: an arrival is certain once no client
that is still computed could arrive before it. How soon one could at the earliest is known before
it is computed (its download takes a while), so that clients run in parallel meanwhile.
"""

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from flwr.app import Message

from mest_fed.simulation.engine.client_runner import Job, Outcome
from mest_fed.simulation.engine.executor import Exchange, Executor


@dataclass
class PendingTask:
    """An instruction on its way.

    Parameters
    ----------
    message : Message
        The instruction.
    number : int
        That its circumstances were drawn by.
    start : float
        Virtual time at which its device begins.
    at_least : float
        Seconds from then on before which nothing arrives.
    outcome : Outcome or None
        What came of it, once it is computed.
    """

    message: Message
    number: int
    start: float
    at_least: float = 0.0
    outcome: Outcome | None = None

    @property
    def node_id(self) -> int:
        """The device."""
        return self.message.metadata.dst_node_id

    @property
    def arrival(self) -> float:
        """When the server has the reply, or at the earliest."""
        seconds = self.at_least if self.outcome is None else self.outcome.task_result.seconds
        return self.start + seconds

    @property
    def busy_until(self) -> float:
        """When the device is done with it, or at the earliest."""
        busy = 0.0 if self.outcome is None else self.outcome.task_result.busy_seconds
        return max(self.arrival, self.start + busy)


class PendingTasks:
    """All pending that have not landed.

    Parameters
    ----------
    executor : Executor
        Where clients are computed.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._exchange: Exchange | None = None
        self._jobs: deque[Job] = deque()
        self._computing: deque[PendingTask] = deque()
        self._by_id: dict[str, PendingTask] = {}
        self._last: dict[int, PendingTask] = {}

    def __iter__(self) -> Iterator[PendingTask]:
        """Iterate over the pending, in the order in which they began."""
        return iter(self._by_id.values())

    def add(self, pending_task: PendingTask, job: Job | None) -> None:
        """Begin an instruction; without a job its outcome is there already."""
        self._by_id[pending_task.message.metadata.message_id] = pending_task
        self._last[pending_task.node_id] = pending_task
        if job is not None:
            self._computing.append(pending_task)
            self._jobs.append(job)
            if self._exchange is None:
                self._exchange = self._executor.open(_Inbox(self._jobs))
            self._exchange.send()

    def last_of(self, node_id: int) -> PendingTask | None:
        """Return a node's latest pending task, computed; None if it has none."""
        pending_task = self._last.get(node_id)
        if pending_task is not None:
            self._compute(pending_task)
        return pending_task

    def next_arrival(self, ids: Collection[str]) -> float:
        """Return when the first of some pending arrives; infinite if none of them is there."""
        asked = [self._by_id[name] for name in ids if name in self._by_id]
        while asked:
            first = min(asked, key=lambda pending_task: pending_task.arrival)
            if first.outcome is not None:
                return first.arrival
            self._compute(first)
        return math.inf

    def land(self, now: float) -> list[PendingTask]:
        """Take out what has arrived by a time, in the order of arrival."""
        landed = []
        for pending_task in list(self):
            if pending_task.arrival <= now:
                self._compute(pending_task)
            if pending_task.arrival <= now:
                landed.append(self._by_id.pop(pending_task.message.metadata.message_id))
                if self._last[pending_task.node_id] is pending_task:
                    del self._last[pending_task.node_id]
        return sorted(landed, key=lambda pending_task: pending_task.arrival)

    def _compute(self, pending_task: PendingTask) -> None:
        while pending_task.outcome is None:
            assert self._exchange is not None
            outcome = self._exchange.take()
            assert isinstance(outcome, Outcome), "each pending_task without an outcome has a job"
            self._computing.popleft().outcome = outcome


class _Inbox(Iterator[Job]):
    """Jobs as far as they are there; more may come after it has ended."""

    def __init__(self, jobs: deque[Job]) -> None:
        self._jobs = jobs

    def __next__(self) -> Job:
        """Return the next job."""
        if not self._jobs:
            raise StopIteration
        return self._jobs.popleft()
