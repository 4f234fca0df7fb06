"""Which worker has which chunks, and since when it works on the first of them."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulations.engine.chunks import Chunk
from simulations.engine.crew import CHUNKS_PER_WORKER, Member


@dataclass
class Flight:
    """A chunk with a worker.

    Parameters
    ----------
    chunk : Chunk
        The chunk.
    member : Member
        The worker.
    lane : int or None
        Number of the lane that its outcomes come through; None if they take Ray's way.
    begun : float
        ``time.monotonic()`` when the worker came to it; infinite while it waits there.
    """

    chunk: Chunk
    member: Member
    lane: int | None
    begun: float = math.inf


class Flights:
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
        self._by_reference: dict[Any, Flight] = {}

    def __len__(self) -> int:
        """Return the number of chunks on their way."""
        return len(self._by_reference)

    def references(self) -> list[Any]:
        """Return what to wait for."""
        return list(self._by_reference)

    def members(self) -> list[Member]:
        """Return the workers that have chunks."""
        return list({id(f.member): f.member for f in self._by_reference.values()}.values())

    def of(self, member: Member) -> list[Flight]:
        """Return what a worker has, in the order in which it comes to it."""
        return [flight for flight in self._by_reference.values() if flight.member is member]

    def takes_more(self, member: Member) -> bool:
        """Say whether a worker may have one more chunk.

        Whoever may have taken a process down runs alone: nobody else shall be taken along.
        """
        flights = self.of(member)
        return len(flights) < CHUNKS_PER_WORKER and not any(f.chunk.runs for f in flights)

    def fits(self, chunk: Chunk, member: Member) -> bool:
        """Say whether a machine's memory holds one more client; one always may run."""
        if member.surroundings is None:
            return True
        here = member.surroundings.node
        beside = [
            max(flight.chunk.memory for flight in self.of(other))
            for other in self.members()
            if other is not member and other.surroundings and other.surroundings.node == here
        ]
        return not beside or sum(beside) + chunk.memory <= member.surroundings.free_bytes

    def add(self, reference: Any, flight: Flight) -> None:
        """Note a chunk that was sent."""
        if not self.of(flight.member):
            flight.begun = time.monotonic()
        self._by_reference[reference] = flight

    def get(self, reference: Any) -> Flight:
        """Return a chunk's flight."""
        return self._by_reference[reference]

    def land(self, reference: Any) -> tuple[Flight, float]:
        """Note that a chunk is back; return its flight and the seconds that it took."""
        flight, now = self._by_reference.pop(reference), time.monotonic()
        for following in self.of(flight.member)[:1]:
            following.begun = min(following.begun, now)
        return flight, now - flight.begun

    def lose(self, member: Member) -> list[Chunk]:
        """Note that a worker is lost; return its chunks, that which it worked on first."""
        lost = [r for r, flight in self._by_reference.items() if flight.member is member]
        return [self._by_reference.pop(reference).chunk for reference in lost]

    def forget(self) -> None:
        """Let all chunks be: nobody will read what comes of them."""
        for flight in self._by_reference.values():
            flight.member.give_lane_back(flight.lane)
        self._by_reference.clear()

    def next_due(self) -> float:
        """Return ``time.monotonic()`` at which the first worker counts as hung."""
        return min(map(self._due, self._by_reference.values()), default=math.inf)

    def hung(self) -> list[Member]:
        """Return the workers that count as hung."""
        now = time.monotonic()
        return [f.member for f in self._by_reference.values() if self._due(f) <= now]

    def _due(self, flight: Flight) -> float:
        jobs = flight.chunk.jobs
        pace = self._pace.get(jobs[0].message.metadata.message_type)
        # Until one chunk is back, nobody knows how long its clients take.
        others = self._patience * (len(jobs) - 1) if pace is None else flight.chunk.cost * pace
        return flight.begun + self._patience + others
