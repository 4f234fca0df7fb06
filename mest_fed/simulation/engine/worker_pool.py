"""The worker processes of an executor: Ray actors that stay, and are replaced when they die."""

import ctypes
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any, Protocol

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from mest_fed.errors import InputError
from mest_fed.own_code import OwnCode
from mest_fed.server.aggregation.partial import WorkerAggregator
from mest_fed.simulation.engine.client_output import ClientLog
from mest_fed.simulation.engine.client_runner import (
    ClientRunner,
    load_client_app,
    one_line,
)
from mest_fed.simulation.engine.machine import free_memory
from mest_fed.simulation.engine.serialization import (
    EncodedJobs,
    EncodedRecords,
    PackedArrays,
    pack_block,
    unpack_jobs,
)
from mest_fed.simulation.engine.shared_memory import Address, SharedMemory

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 << 20
_LARGE_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Have this process keep up to 256 MB of freed memory. Does nothing without glibc.

    By default arrays of a megabyte go back to the system at once, and the next client's touch new
    pages, each of which costs a fault.
    """
    with suppress(OSError, AttributeError):  # without glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


log = getLogger("mest_fed.run")

#: How long workers may take to start, which waits for free cores.
START_SECONDS = 120
#: New workers that are tried in the place of one that died.
MOST_SPAWNS = 3
#: Workers that may die one after the other while they start, before one of them has started.
MOST_START_DEATHS = 5
#: Chunks that a worker has at a time: one runs and one waits. Each has a memory file of its own, so
#: that the next one can be written while the driver reads.
CHUNKS_PER_WORKER = 2


class WorkerSetup(Protocol):
    """What every worker gets before its first client, such as data; Ray brings it there."""

    def install(self) -> None:
        """Put it to use in this process."""


@dataclass(frozen=True)
class WorkerInfo:
    """Where a worker found itself.

    Parameters
    ----------
    node : str
        Ray's id of the machine.
    free_bytes : int
        Memory that the worker could take when it had started.
    memory_files : bool
        Whether it shares memory with the driver.
    """

    node: str
    free_bytes: int
    memory_files: bool


class FleetWorker:
    """The actor: one process that runs chunks of clients.

    Parameters
    ----------
    search_path : list of str
        Where the server process finds modules; a client's may be there.
    own_code : OwnCode
        Modules of a user's own.
    """

    def __init__(self, search_path: list[str], own_code: OwnCode) -> None:
        own_code.install()
        sys.path.extend(path for path in search_path if path not in sys.path)

    def load(
        self,
        client_app: ClientApp | str,
        setup: WorkerSetup | None,
        addresses: Sequence[Address],
    ) -> WorkerInfo:
        """Take what later calls work with, and tell where this is."""
        keep_freed_memory()
        if setup is not None:
            setup.install()
        self._runner = ClientRunner(load_client_app(client_app))
        found = [SharedMemory.find(address) for address in addresses]
        self._lanes = [memory_file for memory_file in found if memory_file is not None]
        if len(self._lanes) < len(addresses):
            self._lanes = []
        node = ray.get_runtime_context().get_node_id()
        return WorkerInfo(node, free_memory(), bool(self._lanes))

    def run(
        self,
        encoded: list[EncodedJobs],
        aggregator: WorkerAggregator[Message] | None,
        memory_file: int | None,
        *shared: PackedArrays,
    ) -> EncodedRecords:
        """Run a chunk of clients, in order; return what came of it."""
        jobs = unpack_jobs(encoded, shared)
        block = self._runner.run(jobs, aggregator)
        shared_memory = (
            self._lanes[memory_file] if self._lanes and memory_file is not None else None
        )
        return pack_block(jobs, block, shared_memory)


@dataclass(eq=False)
class WorkerHandle:
    """A worker as the driver sees it.

    Parameters
    ----------
    actor : ActorHandle
        The process.
    memory_files : list of SharedMemory
        This end of its memory files; empty if there are none.
    loading : ObjectRef
        Gives its :class:`WorkerInfo`.
    """

    actor: Any
    memory_files: list[SharedMemory]
    loading: Any
    worker_info: WorkerInfo | None = None
    #: Numbers of the memory files that no chunk uses, of whatever exchange.
    _free_memory_files: list[int] = field(default_factory=lambda: list(range(CHUNKS_PER_WORKER)))

    def take_memory_file(self) -> int | None:
        """Return the number of a memory file for a chunk; None if other exchanges have all."""
        # Exchanges may run in several threads: asking first and popping then would be a race.
        with suppress(IndexError):
            return self._free_memory_files.pop(0)
        return None

    def give_memory_file_back(self, number: int | None) -> None:
        """Release a memory file for other chunks: its content has been read."""
        if number is not None:
            self._free_memory_files.append(number)

    def memory_file(self, number: int | None) -> SharedMemory | None:
        """Return a memory file if the worker has it, too."""
        shared = self.worker_info is not None and self.worker_info.memory_files
        return self.memory_files[number] if shared and number is not None else None

    def kill(self) -> None:
        """End the process, whatever it does."""
        ray.kill(self.actor)
        for memory_file in self.memory_files:
            memory_file.close()
        self.memory_files = []


class WorkerPool:
    """The workers of an executor; a crashed one is replaced.

    Parameters
    ----------
    client_app : ClientApp or str
        What they run.
    size : int
        How many there are.
    setup : WorkerSetup, optional
        What each gets before its first client.
    gpus : float
        Part of a GPU that each asks Ray for.

    Raises
    ------
    InputError
        If the ClientApp cannot be sent to other processes.
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        size: int,
        setup: WorkerSetup | None = None,
        gpus: float = 0.0,
    ) -> None:
        try:
            self._client_app = ray.put(client_app)
        except TypeError as error:
            hint = 'give it as "module:attribute"'
            raise InputError(f"the ClientApp cannot be sent to worker processes; {hint}") from error
        self._setup = ray.put(setup)
        self._own_code = ray.put(OwnCode.imported())
        # A worker that dies on a lost machine must not come back by itself: we replace it.
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(FleetWorker)
        self._lock = threading.Lock()
        #: Seconds that a job of cost 1 took lately, by type of message.
        self.pace: dict[str, float] = {}
        self.client_log = ClientLog()
        self.workers = [self._spawn() for _ in range(size)]

    def _spawn(self) -> WorkerHandle:
        made = [SharedMemory.create() for _ in range(CHUNKS_PER_WORKER)]
        memory_files = [memory_file for memory_file, _ in filter(None, made)]
        addresses = [address for _, address in filter(None, made)]
        actor = self._actor.remote(sys.path, self._own_code)
        loading = actor.load.remote(self._client_app, self._setup, addresses)
        return WorkerHandle(actor, memory_files, loading)

    def ensure_loaded(self) -> None:
        """Wait until all have what they work with. One that dies meanwhile is replaced.

        Raises
        ------
        InputError
            If the ClientApp cannot be loaded there, workers die again and again while they start,
            or the cluster has no cores to spare.
        """
        with self._lock:
            until = time.monotonic() + START_SECONDS
            deaths = 0
            while new := [worker for worker in self.workers if worker.worker_info is None]:
                left = max(0.0, until - time.monotonic())
                ready, _ = ray.wait([worker.loading for worker in new], timeout=left)
                if not ready:
                    raise InputError(self._not_started())
                worker = next(worker for worker in new if worker.loading == ready[0])
                try:
                    worker.worker_info = _worker_info(worker)
                    deaths = 0
                except (RayActorError, OutOfMemoryError) as error:
                    deaths += 1
                    if deaths == MOST_START_DEATHS:
                        raise InputError(
                            f"{deaths} worker processes in a row died while they started; the "
                            "ClientApp may crash when it is imported, or memory may be short"
                        ) from error
                    log.warning("a worker died while it started; another one starts")
                    worker.kill()
                    self.workers[self.workers.index(worker)] = self._spawn()
                    until = time.monotonic() + START_SECONDS

    def _not_started(self) -> str:
        free = int(ray.available_resources().get("CPU", 0))
        return (
            f"{len(self.workers)} workers did not start within {START_SECONDS} s: "
            f"the Ray cluster has {free} free cores"
        )

    def replace(self, crashed: WorkerHandle) -> None:
        """Put a new worker in the place of a crashed one, once; none if no core is left.

        Raises
        ------
        InputError
            If no worker is left.
        """
        with self._lock:
            if crashed not in self.workers:
                return
            place = self.workers.index(crashed)
            crashed.kill()
            others = self.workers[:place] + self.workers[place + 1 :]
            for _ in range(MOST_SPAWNS):
                spawned = self._spawn()
                try:
                    arrives = self._arrives(spawned, len(others))
                except (RayActorError, OutOfMemoryError):
                    # Ray may have sent it to a machine that is lost, before it knew.
                    log.warning("a new worker died while it started")
                    spawned.kill()
                    continue
                if arrives:
                    self.workers[place] = spawned
                    return
                spawned.kill()
                break
            if not others:
                raise InputError("the last worker died, and no new one starts")
            log.warning("there is no new worker; %d go on", len(others))
            self.workers = others

    def _arrives(self, spawned: WorkerHandle, others: int) -> bool:
        """Wait for a new worker; say whether it starts. A lost machine leaves no core for it."""
        for _ in range(START_SECONDS):
            ready, _ = ray.wait([spawned.loading], timeout=1.0)
            if ready:
                spawned.worker_info = _worker_info(spawned)
                return True
            if others and int(ray.cluster_resources().get("CPU", 0)) <= others:
                return False
        return False

    def kill(self) -> None:
        """End all workers, whatever they do."""
        for worker in self.workers:
            worker.kill()
        self.workers = []


def _worker_info(worker: WorkerHandle) -> WorkerInfo:
    """Return what a worker found when it had loaded all that it works with.

    Raises
    ------
    InputError
        If it cannot load the ClientApp.
    RayActorError, OutOfMemoryError
        If it died.
    """
    try:
        found: WorkerInfo = ray.get(worker.loading)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):
            raise cause from None
        raise InputError(f"cannot load the ClientApp in a worker: {one_line(cause)}") from error
    return found
