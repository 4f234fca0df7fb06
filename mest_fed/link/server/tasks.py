"""The instructions of one node that have not ended, in their order."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mest_fed.link.messages import Bytes, Instruction, Outcome, Report
from mest_fed.link.protocol import MOST_OBJECTS, Refusal
from mest_fed.link.server.limits import Limits
from mest_fed.link.server.objects import Blob, ObjectStore, Room, Uploads
from mest_fed.schema import FailureKind

#: Ids of instructions that were reported, by which a report made again is known.
_REMEMBERED = 32


class Keeper(Protocol):
    """What all nodes share."""

    limits: Limits
    objects: ObjectStore
    room: Room

    def ended(self, outcome: Outcome) -> None:
        """Keep what came of an instruction."""


@dataclass(eq=False)
class Task:
    """An instruction that has not ended.

    Parameters
    ----------
    instruction : Instruction
        As it was submitted.
    blobs : mapping of str to Blob
        What the node fetches.
    uploads : Uploads
        What has arrived of its result.
    submitted, expires : float
        By the clock; it may never expire.
    given : bool
        Whether the node has it.
    """

    instruction: Instruction
    blobs: Mapping[str, Blob]
    uploads: Uploads
    submitted: float
    expires: float
    given: bool = False


class Tasks:
    """The instructions of a node. The first one is due until it has ended.

    Every method ends what is past its deadline before it looks.

    Parameters
    ----------
    node_id : int
        The node.
    keeper : Keeper
        What all nodes share.
    clock : callable
        Returns seconds.
    """

    def __init__(self, node_id: int, keeper: Keeper, clock: Callable[[], float]) -> None:
        self._node_id, self._keeper, self._clock = node_id, keeper, clock
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._reported: deque[str] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        """Return how many have not ended."""
        return len(self._tasks)

    def add(self, instruction: Instruction, blobs: Mapping[str, Blob]) -> None:
        """Append an instruction, of another id than those that are here."""
        keeper, now = self._keeper, self._clock()
        uploads = Uploads(self._node_id, keeper.limits.upload_bytes, MOST_OBJECTS, keeper.room)
        kept = {name: keeper.objects.add(blob) for name, blob in blobs.items()}
        expires = now + (instruction.deadline_seconds or math.inf)
        self._tasks[instruction.id] = Task(instruction, kept, uploads, now, expires)

    def due(self, last_seen: str) -> Instruction | None:
        """Give the node the first instruction, with the seconds that are left, unless it has it."""
        self.expire()
        task = next(iter(self._tasks.values()), None)
        if task is None or (task.given and task.instruction.id == last_seen):
            return None
        task.given = True
        left = 0.0 if task.expires == math.inf else task.expires - self._clock()
        return replace(task.instruction, deadline_seconds=left)

    def given(self, instruction: str) -> Task:
        """Return an instruction that the node has.

        Raises
        ------
        Refusal
            If it is none, or it has ended.
        """
        self.expire()
        task = self._tasks.get(instruction)
        if task is not None and task.given:
            return task
        if instruction in self._reported:
            raise Refusal("ALREADY_EXISTS", "this instruction was reported before")
        raise Refusal("FAILED_PRECONDITION", "this instruction is not open for this node")

    def is_open(self, instruction: str) -> bool:
        """Say whether an instruction has not ended."""
        self.expire()
        return instruction in self._tasks

    def blobs(self) -> Iterator[Blob]:
        """Yield what the node may fetch."""
        self.expire()
        for task in self._tasks.values():
            if task.given:
                yield from task.blobs.values()

    def report(self, report: Report) -> None:
        """End an instruction by the node's report.

        Raises
        ------
        Refusal
            If the node does not have it, or an object was not uploaded; nothing changes then.
        """
        task = self.given(report.instruction)
        objects = task.uploads.take(report.objects)
        self._reported.append(report.instruction)
        self._end(task, report.failure, report.reason, report=report, objects=objects)

    def withdraw(self, instruction: str) -> None:
        """End an instruction that is no longer wanted; nothing happens if it has ended."""
        if instruction in self._tasks:
            self._end(self._tasks[instruction], FailureKind.SURPLUS)

    def expire(self) -> None:
        """End what is past its deadline."""
        now = self._clock()
        for task in [each for each in self._tasks.values() if each.expires <= now]:
            self._end(task, FailureKind.DEADLINE)

    def end_all(self, failure: FailureKind, reason: str) -> None:
        """End all of them as failures."""
        for task in list(self._tasks.values()):
            self._end(task, failure, reason)

    def _end(
        self,
        task: Task,
        failure: FailureKind | None,
        reason: str = "",
        *,
        report: Report | None = None,
        objects: Mapping[str, Bytes] | None = None,
    ) -> None:
        del self._tasks[task.instruction.id]
        task.uploads.drop_all()
        for blob in task.blobs.values():
            self._keeper.objects.release(blob)
        outcome = Outcome(
            self._node_id,
            task.instruction,
            elapsed=self._clock() - task.submitted,
            failure=failure,
            reason=reason or (failure.label if failure else ""),
            objects=objects or {},
        )
        if report is not None:
            outcome = replace(
                outcome,
                metrics=report.metrics,
                peak_bytes=report.peak_bytes,
                seconds=report.seconds,
            )
        self._keeper.ended(outcome)
