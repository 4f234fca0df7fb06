"""Cutting jobs into chunks that travel together: large enough to be worth it, the longest first."""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from simulations.engine.worker import Job

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
