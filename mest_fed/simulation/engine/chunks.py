"""Cutting jobs into chunks that travel together: large enough to be worth it, the longest first."""

import heapq
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mest_fed.simulation.engine.client_runner import Job
from mest_fed.simulation.engine.worker_pool import CHUNKS_PER_WORKER, WorkerHandle

#: Jobs that travel together at most.
MOST_JOBS = 64
#: Work that pays for the journey of a chunk.
WORTHWHILE_SECONDS = 0.03
#: A chunk takes so little of what is left for each worker, so that all end at about one time.
SHARE = 3
#: Bytes of replies that travel together at most, where they travel one by one.
MOST_BYTES = 16 << 20


@dataclass(order=True)
class Chunk:
    """Jobs at consecutive positions.

    Parameters
    ----------
    rank : float
        Chunks go in this order: the longest first.
    first : int
        Position of the first job.
    jobs : list of Job
        The jobs.
    runs : int
        How often it took its worker down.
    """

    rank: float
    first: int
    jobs: list[Job] = field(compare=False)
    runs: int = field(default=0, compare=False)

    @property
    def cost(self) -> float:
        """Sum of the jobs' costs."""
        return sum(job.cost for job in self.jobs)

    @property
    def memory(self) -> int:
        """Most bytes that one of its jobs needs."""
        return max(job.memory for job in self.jobs)

    def singles(self) -> list["Chunk"]:
        """Return its jobs one by one, to run before all others."""
        return [
            Chunk(-math.inf, self.first + place, [job], self.runs)
            for place, job in enumerate(self.jobs)
        ]


class Cutter:
    """Takes jobs and cuts them into chunks.

    Parameters
    ----------
    jobs : iterator of Job
        Taken only as far as is asked for.
    pace : mapping of str to float
        Seconds that a job of cost 1 took lately, by type of message.
    aligned : bool
        Whether chunks must be subtrees of the tree of positions: ``2**k`` jobs, of which the
        first stands at a multiple of ``2**k``.
    """

    def __init__(self, jobs: Iterator[Job], pace: Mapping[str, float], *, aligned: bool) -> None:
        self._jobs = jobs
        self._pace = pace
        self._aligned = aligned
        self._chunks: list[Chunk] = []
        self.taken = 0
        #: Bytes of a reply, as far as is known.
        self.reply_bytes = 0

    def put_back(self, chunk: Chunk) -> None:
        """Have a chunk run again."""
        heapq.heappush(self._chunks, chunk)

    def drain(self) -> list[Chunk]:
        """Take out all chunks that wait."""
        waiting, self._chunks = self._chunks, []
        return waiting

    def next(self, room: int, workers: int) -> Chunk | None:
        """Return the next chunk; None if no job waits.

        Parameters
        ----------
        room : int
            Jobs that may be taken now at most.
        workers : int
            Processes that chunks are for.
        """
        if not self._chunks:
            self._cut(list(islice(self._jobs, max(0, room))), workers)
        return heapq.heappop(self._chunks) if self._chunks else None

    def _cut(self, jobs: list[Job], workers: int) -> None:
        start = 0
        while start < len(jobs):
            left = len(jobs) - start
            size = min(left, self._size(jobs[start], left, workers))
            if self._aligned:
                size = 1 << (size.bit_length() - 1)
                while self.taken % size:
                    size //= 2
            cut = jobs[start : start + size]
            heapq.heappush(self._chunks, Chunk(-sum(j.cost for j in cut), self.taken, cut))
            self.taken += len(cut)
            start += len(cut)

    def _size(self, first: Job, left: int, workers: int) -> int:
        seconds = first.cost * self._pace.get(first.message.metadata.message_type, math.inf)
        worthwhile = math.ceil(WORTHWHILE_SECONDS / seconds) if seconds > 0 else MOST_JOBS
        size = max(worthwhile, left // (SHARE * workers))
        if not self._aligned and self.reply_bytes:
            size = min(size, MOST_BYTES // self.reply_bytes)
        return max(1, min(size, MOST_JOBS))


@dataclass
class InFlightChunk:
    """A chunk with a worker.

    Parameters
    ----------
    chunk : Chunk
        The chunk.
    worker : WorkerHandle
        The worker.
    memory_file : int or None
        Number of the memory file that its outcomes come through; None if they take Ray's way.
    begun : float
        ``time.monotonic()`` when the worker came to it; infinite while it waits there.
    """

    chunk: Chunk
    worker: WorkerHandle
    memory_file: int | None
    begun: float = math.inf


class InFlightChunks:
    """Chunks on their way, by the reference of what will come of them.

    Parameters
    ----------
    pace : mapping of str to float
        Seconds that a job of cost 1 takes, by type of message.
    patience : float
        Seconds after which a client counts as hung.
    """

    def __init__(self, pace: Mapping[str, float], patience: float) -> None:
        self._pace = pace
        self._patience = patience
        self._by_reference: dict[Any, InFlightChunk] = {}

    def __len__(self) -> int:
        """Return the number of chunks on their way."""
        return len(self._by_reference)

    def references(self) -> list[Any]:
        """Return what to wait for."""
        return list(self._by_reference)

    def workers(self) -> list[WorkerHandle]:
        """Return the workers that have chunks."""
        return list({id(f.worker): f.worker for f in self._by_reference.values()}.values())

    def of(self, worker: WorkerHandle) -> list[InFlightChunk]:
        """Return what a worker has, in the order in which it comes to it."""
        return [sent for sent in self._by_reference.values() if sent.worker is worker]

    def takes_more(self, worker: WorkerHandle) -> bool:
        """Say whether a worker may have one more chunk.

        A client that may have crashed a process runs alone, so that no other client fails with it.
        """
        in_flight = self.of(worker)
        return len(in_flight) < CHUNKS_PER_WORKER and not any(f.chunk.runs for f in in_flight)

    def fits(self, chunk: Chunk, worker: WorkerHandle) -> bool:
        """Say whether a machine's memory holds one more client; one always may run."""
        if worker.worker_info is None:
            return True
        here = worker.worker_info.node
        beside = [
            max(sent.chunk.memory for sent in self.of(other))
            for other in self.workers()
            if other is not worker and other.worker_info and other.worker_info.node == here
        ]
        return not beside or sum(beside) + chunk.memory <= worker.worker_info.free_bytes

    def add(self, reference: Any, sent: InFlightChunk) -> None:
        """Note a chunk that was sent."""
        if not self.of(sent.worker):
            sent.begun = time.monotonic()
        self._by_reference[reference] = sent

    def get(self, reference: Any) -> InFlightChunk:
        """Return a chunk's sent."""
        return self._by_reference[reference]

    def land(self, reference: Any) -> tuple[InFlightChunk, float]:
        """Note that a chunk is back; return its sent and the seconds that it took."""
        sent, now = self._by_reference.pop(reference), time.monotonic()
        for following in self.of(sent.worker)[:1]:
            following.begun = min(following.begun, now)
        return sent, now - sent.begun

    def lose(self, worker: WorkerHandle) -> list[Chunk]:
        """Note that a worker is lost; return its chunks, that which it worked on first."""
        lost = [r for r, sent in self._by_reference.items() if sent.worker is worker]
        return [self._by_reference.pop(reference).chunk for reference in lost]

    def forget(self) -> None:
        """Drop all chunks: their results are not read."""
        for sent in self._by_reference.values():
            sent.worker.give_memory_file_back(sent.memory_file)
        self._by_reference.clear()

    def next_due(self) -> float:
        """Return ``time.monotonic()`` at which the first worker counts as hung."""
        return min(map(self._due, self._by_reference.values()), default=math.inf)

    def hung(self) -> list[WorkerHandle]:
        """Return the workers that count as hung."""
        now = time.monotonic()
        return [f.worker for f in self._by_reference.values() if self._due(f) <= now]

    def _due(self, sent: InFlightChunk) -> float:
        jobs = sent.chunk.jobs
        pace = self._pace.get(jobs[0].message.metadata.message_type)
        # Until one chunk is back, the clients' run time is unknown.
        others = self._patience * (len(jobs) - 1) if pace is None else sent.chunk.cost * pace
        return sent.begun + self._patience + others
