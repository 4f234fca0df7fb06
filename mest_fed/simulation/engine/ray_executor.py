"""Clients on resident Ray actors, one a core."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from logging import getLogger

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from mest_fed.errors import not_allowed
from mest_fed.server.aggregation.partial import PairwiseSum, PartialAggregate, WorkerAggregator
from mest_fed.server.flower_internals import WORKER_DIED, error_reply
from mest_fed.simulation.engine.chunks import (
    MOST_JOBS,
    Chunk,
    Cutter,
    InFlightChunk,
    InFlightChunks,
)
from mest_fed.simulation.engine.client_runner import Block, Job, Outcome, TaskTimeout, resolve
from mest_fed.simulation.engine.machine import cores_and_gpus, gpu_share
from mest_fed.simulation.engine.ray_session import Session
from mest_fed.simulation.engine.serialization import RecordStore, pack_jobs, unpack_block
from mest_fed.simulation.engine.worker_pool import WorkerHandle, WorkerPool, WorkerSetup

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
    pool : WorkerPool
        Where chunks run.
    jobs : iterator of Job
        Taken lazily.
    aggregator : WorkerAggregator, optional
        Sums replies in the workers.
    stop_at : float
        ``time.monotonic()`` after which nothing more is taken.
    patience : float
        Seconds of wall-clock time after which a client counts as hung.
    """

    def __init__(
        self,
        pool: WorkerPool,
        jobs: Iterator[Job],
        *,
        aggregator: WorkerAggregator[Message] | None = None,
        stop_at: float = math.inf,
        patience: float = math.inf,
    ) -> None:
        self._pool = pool
        self._aggregator = None if aggregator is None else ray.put(aggregator)
        self._stop_at = stop_at
        self._cutter = Cutter(jobs, pool.pace, aligned=aggregator is not None)
        self._store = RecordStore(ray.put)
        self._in_flight = InFlightChunks(pool.pace, patience)
        self._blocks: dict[int, Block] = {}
        self._missed: dict[int, int] = {}
        self._ready: deque[Outcome | TaskTimeout] = deque()
        self._position = 0
        self._sum = PairwiseSum()

    def take(self) -> Outcome | TaskTimeout | None:
        """See :meth:`mest_fed.simulation.engine.executor.Exchange.take`."""
        while True:
            self.send()
            if self._ready:
                self._position += 1
                return self._ready.popleft()
            if self._position in self._blocks:
                block = self._blocks.pop(self._position)
                self._pool.client_log.write(block.printed)
                self._ready.extend(block.outcomes)
                self._sum.add(block.partial, (len(block.outcomes) - 1).bit_length())
            elif self._position in self._missed:
                number = self._missed.pop(self._position)
                self._ready.extend([TaskTimeout.MISSED] * number)
                self._sum.add(None, (number - 1).bit_length())
            elif self._in_flight:
                self._collect()
            elif waiting := self._cutter.drain():  # there was no time left to send them
                self._miss(waiting)
            else:
                return None

    def total(self) -> PartialAggregate | None:
        """See :meth:`mest_fed.simulation.engine.executor.Exchange.total`."""
        return self._sum.total()

    def close(self) -> None:
        """See :meth:`mest_fed.simulation.engine.executor.Exchange.close`."""
        self._in_flight.forget()

    def send(self) -> None:
        """Give chunks to the workers until all have enough, or the look-ahead is used up."""
        while time.monotonic() < self._stop_at:
            if not self._pool.workers:
                raise RuntimeError("the workers have ended: their executor is closed")
            idlest = min(self._pool.workers, key=lambda worker: len(self._in_flight.of(worker)))
            if not self._in_flight.takes_more(idlest):
                return
            chunk = self._cutter.next(self._room(), len(self._pool.workers))
            if chunk is None:
                return
            alone = chunk.runs == 0 or not self._in_flight.of(idlest)
            if not alone or not self._in_flight.fits(chunk, idlest):
                self._cutter.put_back(chunk)
                return
            encoded, references = pack_jobs(chunk.jobs, self._store)
            memory_file = idlest.take_memory_file()
            sent = idlest.actor.run.remote(encoded, self._aggregator, memory_file, *references)
            self._in_flight.add(sent, InFlightChunk(chunk, idlest, memory_file))

    def _room(self) -> int:
        """Return how many more jobs may be taken."""
        ahead = LOOK_AHEAD * len(self._pool.workers)
        if self._aggregator is None and self._cutter.reply_bytes:
            ahead = min(ahead, max(1, LOOK_AHEAD_BYTES // self._cutter.reply_bytes))
        return ahead - (self._cutter.taken - self._position)

    def _collect(self) -> None:
        """Wait for a chunk and keep its block, or for the end of the exchange's time."""
        until = min(self._stop_at, self._in_flight.next_due())
        seconds = None if until == math.inf else max(0.0, until - time.monotonic())
        ready, _ = ray.wait(self._in_flight.references(), num_returns=1, timeout=seconds)
        if not ready:
            for worker in self._in_flight.hung():
                self._recover(worker, "gave no reply in time")
            if time.monotonic() >= self._stop_at:
                self._stop()
            return
        sent = self._in_flight.get(ready[0])
        try:
            records = ray.get(ready[0])
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, ObjectLostError, OutOfMemoryError):
            self._recover(sent.worker, "died")
            return
        _, seconds = self._in_flight.land(ready[0])
        chunk = sent.chunk
        block = unpack_block(records, chunk.jobs, sent.worker.memory_file(sent.memory_file))
        sent.worker.give_memory_file_back(sent.memory_file)
        self._blocks[chunk.first] = block
        self._pool.pace[chunk.jobs[0].message.metadata.message_type] = seconds / chunk.cost
        self._cutter.reply_bytes = records.size // len(chunk.jobs)

    def _stop(self) -> None:
        """Replace workers that are busy with discarded chunks: they may hang."""
        for worker in self._in_flight.workers():
            lost = self._in_flight.lose(worker)
            self._miss(lost)
            clients = sum(len(chunk.jobs) for chunk in lost)
            log.warning("time is over for %d clients of a worker, which is replaced", clients)
            self._pool.replace(worker)

    def _miss(self, chunks: Iterable[Chunk]) -> None:
        self._missed |= {chunk.first: len(chunk.jobs) for chunk in chunks}

    def _recover(self, worker: WorkerHandle, what: str) -> None:
        """Replace a worker; run what it had again.

        The chunk it worked on is cut into single clients, so that a client that crashes the process
        does not take the others along. Nothing of the chunk has counted yet.
        """
        running, *queued = self._in_flight.lose(worker)
        running.runs += 1
        hung_alone = what != "died" and len(running.jobs) == 1
        gives_up = running.runs == MAX_RUNS or hung_alone
        nodes = ", ".join(str(job.message.metadata.dst_node_id) for job in running.jobs)
        then = "it gives an error" if gives_up else "they run again"
        log.warning("a worker %s with the clients of nodes %s; %s", what, nodes, then)
        self._pool.replace(worker)
        if gives_up:
            times = f" {running.runs} times" if what == "died" else ""
            self._give_up(running, f"the worker process {what}{times} while this client ran")
        else:
            queued += running.singles()
        for chunk in queued:
            self._cutter.put_back(chunk)

    def _give_up(self, chunk: Chunk, reason: str) -> None:
        outcomes = [
            resolve(job, error_reply(job.message, WORKER_DIED, reason), job.context.state)
            for job in chunk.jobs
        ]
        self._blocks[chunk.first] = Block(outcomes)


class RayExecutor:
    """Runs clients on Ray actors, with the same outcomes as :class:`SerialExecutor`, bit for bit.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"``, which is loaded in the workers.
    workers : int
        Number of actors, one core each.
    address : str, optional
        Ray cluster to join. By default the session that this process already has, else a new
        one on this machine, without dashboard, that :meth:`close` ends.
    setup : WorkerSetup, optional
        What each worker gets before its first client.
    patience : float
        Seconds of wall-clock time after which a client counts as hung: its process is ended, and
        it gives an error reply.

    Raises
    ------
    InputError
        If Ray cannot start, or the cluster cannot be reached or has fewer cores than workers.
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        workers: int,
        address: str | None = None,
        *,
        setup: WorkerSetup | None = None,
        patience: float = math.inf,
    ) -> None:
        self._patience = patience
        self._session = Session(workers, address)
        try:
            machines = [cores_and_gpus(node) for node in ray.nodes()]
            cores = sum(cores for cores, _ in machines)
            if not 1 <= workers <= cores:
                raise not_allowed("workers", workers, f"1 to {cores}, the cores of the Ray cluster")
            gpus = gpu_share(workers, machines)
            self._pool = WorkerPool(client_app, workers, setup, gpus)
        except BaseException:
            self._session.end()
            raise

    def ensure_ready(self) -> None:
        """See :meth:`mest_fed.simulation.engine.executor.Executor.ensure_ready`."""
        self._pool.ensure_loaded()

    def open(
        self,
        jobs: Iterator[Job],
        *,
        aggregator: WorkerAggregator[Message] | None = None,
        timeout: float | None = None,
    ) -> RayExchange:
        """See :meth:`mest_fed.simulation.engine.executor.Executor.open`.

        A client whose worker process dies runs again on a new one, at most 3 times in all; then
        it gives an error reply.
        """
        self._pool.ensure_loaded()
        stop_at = math.inf if timeout is None else time.monotonic() + timeout
        return RayExchange(
            self._pool, jobs, aggregator=aggregator, stop_at=stop_at, patience=self._patience
        )

    def close(self) -> None:
        """End the actors, and the Ray session if this executor started it."""
        if ray.is_initialized():
            self._pool.kill()
        self._session.end()
