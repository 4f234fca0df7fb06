"""One exchange over Ray actors: chunks out, outcomes back in order, the dead and hung replaced."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from logging import getLogger

import ray
from flwr.app import Message
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from mest_fed.folding import Fold, PairwiseSum, Partial
from simulations.engine.chunks import MOST_JOBS, Chunk, Cutter
from simulations.engine.crew import Crew, Member
from simulations.engine.flights import Flight, Flights
from simulations.engine.flower_internals import WORKER_DIED, error_reply
from simulations.engine.parcel import RecordStore, pack_jobs, unpack_block
from simulations.engine.worker import Block, Job, Missed, Outcome, settle

log = getLogger("mest_fed.run")

#: Jobs for each worker that may be on their way or done before their turn comes.
LOOK_AHEAD = 2 * MOST_JOBS
#: Bytes of replies that may be on their way or wait for their turn.
LOOK_AHEAD_BYTES = 256 << 20
#: Times that a client may take its process down.
MAX_RUNS = 3


class RayExchange:
    """Sends jobs out in chunks and brings their outcomes back in order.

    Parameters
    ----------
    crew : Crew
        Where chunks run.
    jobs : iterator of Job
        Taken lazily.
    fold : Fold, optional
        Sums replies in the workers.
    stop_at : float
        ``time.monotonic()`` after which nothing more is taken.
    patience : float
        Seconds of wall-clock time after which a client counts as hung.
    """

    def __init__(
        self,
        crew: Crew,
        jobs: Iterator[Job],
        *,
        fold: Fold[Message] | None = None,
        stop_at: float = math.inf,
        patience: float = math.inf,
    ) -> None:
        self._crew = crew
        self._fold = None if fold is None else ray.put(fold)
        self._stop_at = stop_at
        self._cutter = Cutter(jobs, crew.pace, aligned=fold is not None)
        self._store = RecordStore(ray.put)
        self._flights = Flights(crew.pace, patience)
        self._blocks: dict[int, Block] = {}
        self._missed: dict[int, int] = {}
        self._ready: deque[Outcome | Missed] = deque()
        self._position = 0
        self._sum = PairwiseSum()

    def take(self) -> Outcome | Missed | None:
        """See :meth:`simulations.engine.executor.Exchange.take`."""
        while True:
            self.send()
            if self._ready:
                self._position += 1
                return self._ready.popleft()
            if self._position in self._blocks:
                block = self._blocks.pop(self._position)
                self._ready.extend(block.outcomes)
                self._sum.add(block.partial, (len(block.outcomes) - 1).bit_length())
            elif self._position in self._missed:
                number = self._missed.pop(self._position)
                self._ready.extend([Missed.MISSED] * number)
                self._sum.add(None, (number - 1).bit_length())
            elif self._flights:
                self._collect()
            elif waiting := self._cutter.drain():  # there was no time left to send them
                self._miss(waiting)
            else:
                return None

    def total(self) -> Partial | None:
        """See :meth:`simulations.engine.executor.Exchange.total`."""
        return self._sum.total()

    def close(self) -> None:
        """See :meth:`simulations.engine.executor.Exchange.close`."""
        self._flights.forget()

    def send(self) -> None:
        """Give chunks to the workers until all have enough, or the look-ahead is used up."""
        while time.monotonic() < self._stop_at:
            if not self._crew.members:
                raise RuntimeError("the workers have ended: their executor is closed")
            idlest = min(self._crew.members, key=lambda member: len(self._flights.of(member)))
            if not self._flights.takes_more(idlest):
                return
            chunk = self._cutter.next(self._room(), len(self._crew.members))
            if chunk is None:
                return
            alone = chunk.runs == 0 or not self._flights.of(idlest)
            if not alone or not self._flights.fits(chunk, idlest):
                self._cutter.put_back(chunk)
                return
            parcels, references = pack_jobs(chunk.jobs, self._store)
            lane = idlest.take_lane()
            sent = idlest.actor.run.remote(parcels, self._fold, lane, *references)
            self._flights.add(sent, Flight(chunk, idlest, lane))

    def _room(self) -> int:
        """Return how many more jobs may be taken."""
        ahead = LOOK_AHEAD * len(self._crew.members)
        if self._fold is None and self._cutter.reply_bytes:
            ahead = min(ahead, max(1, LOOK_AHEAD_BYTES // self._cutter.reply_bytes))
        return ahead - (self._cutter.taken - self._position)

    def _collect(self) -> None:
        """Wait for a chunk and keep its block, or for the end of the exchange's time."""
        until = min(self._stop_at, self._flights.next_due())
        seconds = None if until == math.inf else max(0.0, until - time.monotonic())
        ready, _ = ray.wait(self._flights.references(), num_returns=1, timeout=seconds)
        if not ready:
            for member in self._flights.hung():
                self._recover(member, "gave no reply in time")
            if time.monotonic() >= self._stop_at:
                self._stop()
            return
        flight = self._flights.get(ready[0])
        try:
            freight = ray.get(ready[0])
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, ObjectLostError, OutOfMemoryError):
            self._recover(flight.member, "died")
            return
        _, seconds = self._flights.land(ready[0])
        chunk = flight.chunk
        block = unpack_block(freight, chunk.jobs, flight.member.lane(flight.lane))
        flight.member.give_lane_back(flight.lane)
        self._crew.tracebacks.log(block)
        self._blocks[chunk.first] = block
        self._crew.pace[chunk.jobs[0].message.metadata.message_type] = seconds / chunk.cost
        self._cutter.reply_bytes = freight.size // len(chunk.jobs)

    def _stop(self) -> None:
        """Replace workers that are busy with what nobody waits for any more: they may hang."""
        for member in self._flights.members():
            lost = self._flights.lose(member)
            self._miss(lost)
            clients = sum(len(chunk.jobs) for chunk in lost)
            log.warning("time is over for %d clients of a worker, which is replaced", clients)
            self._crew.replace(member)

    def _miss(self, chunks: Iterable[Chunk]) -> None:
        self._missed |= {chunk.first: len(chunk.jobs) for chunk in chunks}

    def _recover(self, member: Member, what: str) -> None:
        """Replace a worker; run what it had again.

        The chunk it worked on is cut into single clients, so that whoever takes the process down
        does not take the others along. Nothing of the chunk has counted yet.
        """
        running, *queued = self._flights.lose(member)
        running.runs += 1
        hung_alone = what != "died" and len(running.jobs) == 1
        gives_up = running.runs == MAX_RUNS or hung_alone
        nodes = ", ".join(str(job.message.metadata.dst_node_id) for job in running.jobs)
        then = "it gives an error" if gives_up else "they run again"
        log.warning("a worker %s with the clients of nodes %s; %s", what, nodes, then)
        self._crew.replace(member)
        if gives_up:
            times = f" {running.runs} times" if what == "died" else ""
            self._give_up(running, f"the worker process {what}{times} while this client ran")
        else:
            queued += running.singles()
        for chunk in queued:
            self._cutter.put_back(chunk)

    def _give_up(self, chunk: Chunk, reason: str) -> None:
        outcomes = [
            settle(job, error_reply(job.message, WORKER_DIED, reason), job.context.state)
            for job in chunk.jobs
        ]
        self._blocks[chunk.first] = Block(outcomes)
