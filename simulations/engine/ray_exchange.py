"""One run of jobs over Ray actors: chunks out, outcomes back in order, the dead replaced."""

import math
from collections import Counter, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from simulations.engine.flower_internals import WORKER_DIED, error_reply
from simulations.engine.parcel import RecordStore, pack_jobs, unpack_outcome
from simulations.engine.worker import Job, Outcome

#: Clients that travel together at most.
CHUNK_SIZE = 16
#: Work that pays for the journey of a chunk, which costs some 5 ms of all processes (measured).
WORTHWHILE_SECONDS = 0.05
#: Chunks that an actor has at a time.
CHUNKS_PER_ACTOR = 2
#: Clients an actor that may be on their way or done before their turn comes.
LOOK_AHEAD = 4 * CHUNK_SIZE
#: Times that a client may take its process down.
MAX_RUNS = 3


class Actors(Protocol):
    """Actors with a ``run`` method, how long a client took last, and how to replace an actor."""

    members: list[Any]
    client_seconds: float

    def replace(self, dead: Any) -> None:
        """Put a new actor in the place of a dead one."""


@dataclass
class _Chunk:
    first: int
    jobs: list[Job]
    runs: int = 0

    def singles(self) -> list["_Chunk"]:
        return [_Chunk(self.first + i, [job], self.runs) for i, job in enumerate(self.jobs)]


class RayExchange:
    """Sends jobs out in chunks and brings their outcomes back in order.

    Parameters
    ----------
    crew : Actors
        Where chunks run.
    jobs : iterable of Job
        Taken lazily.
    """

    def __init__(self, crew: Actors, jobs: Iterable[Job]) -> None:
        self._crew = crew
        self._jobs = iter(jobs)
        self._store = RecordStore(ray.put)
        self._taken = 0
        self._waiting: deque[Job] = deque()
        self._again: deque[_Chunk] = deque()
        self._in_flight: dict[Any, tuple[_Chunk, Any]] = {}
        self._done: dict[int, Outcome] = {}

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield the outcome of each job, in the order of the jobs."""
        position = 0
        while True:
            self._send(position)
            if position in self._done:
                yield self._done.pop(position)
                position += 1
            elif self._in_flight:
                self._collect()
            else:
                return

    def _send(self, position: int) -> None:
        """Give chunks to the actors until all have enough, or the look-ahead is used up."""
        actors = self._crew.members
        while True:
            load = Counter(actor for _, actor in self._in_flight.values())
            actor = min(actors, key=lambda member: load[member])
            if load[actor] >= self._chunks_per_actor():
                return
            if self._again:
                chunk = self._again.popleft()
            elif self._taken - position < LOOK_AHEAD * len(actors) and self._fill():
                chunk = self._next_chunk()
            else:
                return
            parcels, references = pack_jobs(chunk.jobs, self._store)
            self._in_flight[actor.run.remote(parcels, *references)] = (chunk, actor)

    def _chunks_per_actor(self) -> int:
        """One runs and one waits; but whoever may have taken a process down runs alone there."""
        in_flight = (chunk for chunk, _ in self._in_flight.values())
        return 1 if any(chunk.runs for chunk in [*self._again, *in_flight]) else CHUNKS_PER_ACTOR

    def _fill(self) -> bool:
        """Look as far ahead as chunk sizes need; return whether any job waits."""
        wanted = CHUNKS_PER_ACTOR * len(self._crew.members) * CHUNK_SIZE
        self._waiting.extend(islice(self._jobs, wanted - len(self._waiting)))
        return bool(self._waiting)

    def _next_chunk(self) -> _Chunk:
        """Cut a chunk: smaller ones towards the end, so that all actors end at about one time.

        But clients that take next to no time are not worth a journey each.
        """
        fair = -(-len(self._waiting) // (CHUNKS_PER_ACTOR * len(self._crew.members)))
        worthwhile = math.ceil(WORTHWHILE_SECONDS / self._crew.client_seconds)
        size = min(CHUNK_SIZE, len(self._waiting), max(fair, worthwhile))
        chunk = _Chunk(self._taken, [self._waiting.popleft() for _ in range(size)])
        self._taken += size
        return chunk

    def _collect(self) -> None:
        """Wait for a chunk and keep its outcomes."""
        (ready,), _ = ray.wait(list(self._in_flight), num_returns=1)
        chunk, actor = self._in_flight[ready]
        try:
            seconds, returns = ray.get(ready)
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, ObjectLostError):
            self._recover(actor)
            return
        del self._in_flight[ready]
        self._crew.client_seconds = seconds / len(returns)
        self._done.update(enumerate(map(unpack_outcome, returns), chunk.first))

    def _recover(self, dead: Any) -> None:
        """Replace a dead actor; run what it had again.

        The chunk it worked on is cut into single clients, so that whoever takes the process down
        does not take the others along.
        """
        self._crew.replace(dead)
        lost = [ref for ref, (_, actor) in self._in_flight.items() if actor is dead]
        running, *queued = [self._in_flight.pop(ref)[0] for ref in lost]
        running.runs += 1
        if running.runs == MAX_RUNS:
            self._give_up(running)
            self._again.extend(queued)
        else:
            self._again.extend([*running.singles(), *queued])

    def _give_up(self, chunk: _Chunk) -> None:
        reason = f"the worker process died {MAX_RUNS} times while this client ran"
        for position, job in enumerate(chunk.jobs, chunk.first):
            reply = error_reply(job.message, WORKER_DIED, reason)
            self._done[position] = Outcome(reply, job.context.state)
