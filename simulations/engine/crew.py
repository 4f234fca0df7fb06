"""The worker processes of an executor: Ray actors that stay, and are replaced when they die."""

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
from mest_fed.folding import Fold
from mest_fed.kernels.choice import Choices
from simulations.engine.allocator import keep_freed_memory
from simulations.engine.lane import Address, Lane
from simulations.engine.machine import free_memory
from simulations.engine.parcel import Freight, PackedArrays, Parcel, pack_block, unpack_jobs
from simulations.engine.worker import Tracebacks, Workplace, load_client_app, one_line

log = getLogger("mest_fed.run")

#: How long workers may take to start, which waits for free cores.
START_SECONDS = 120
#: New workers that are tried in the place of one that died.
MOST_HIRES = 3
#: Workers that may die one after the other while they start, before one of them has started.
MOST_START_DEATHS = 5
#: Chunks that a worker has at a time: one runs and one waits. Each has a lane of its own, so that
#: the next one can be written while the driver reads.
CHUNKS_PER_WORKER = 2


class Furnishing(Protocol):
    """What every worker gets before its first client, such as data; Ray brings it there."""

    def install(self) -> None:
        """Put it to use in this process."""


@dataclass(frozen=True)
class Surroundings:
    """Where a worker found itself.

    Parameters
    ----------
    node : str
        Ray's id of the machine.
    free_bytes : int
        Memory that the worker could take when it had started.
    lanes : bool
        Whether it shares memory with the driver.
    """

    node: str
    free_bytes: int
    lanes: bool


class FleetWorker:
    """The actor: one process that runs chunks of clients.

    Parameters
    ----------
    search_path : list of str
        Where the server process finds modules; a client's may be there.
    """

    def __init__(self, search_path: list[str]) -> None:
        sys.path.extend(path for path in search_path if path not in sys.path)

    def load(
        self,
        client_app: ClientApp | str,
        choices: Choices | None,
        furnishing: Furnishing | None,
        addresses: Sequence[Address],
    ) -> Surroundings:
        """Take what later calls work with, and tell where this is."""
        keep_freed_memory()
        if furnishing is not None:
            furnishing.install()
        self._workplace = Workplace(load_client_app(client_app), choices)
        found = [Lane.find(address) for address in addresses]
        self._lanes = [lane for lane in found if lane is not None]
        if len(self._lanes) < len(addresses):
            self._lanes = []
        node = ray.get_runtime_context().get_node_id()
        return Surroundings(node, free_memory(), bool(self._lanes))

    def run(
        self,
        parcels: list[Parcel],
        fold: Fold[Message] | None,
        lane: int | None,
        *shared: PackedArrays,
    ) -> Freight:
        """Run a chunk of clients, in order; return what came of it."""
        jobs = unpack_jobs(parcels, shared)
        block = self._workplace.run(jobs, fold)
        shared_memory = self._lanes[lane] if self._lanes and lane is not None else None
        return pack_block(jobs, block, shared_memory)


@dataclass(eq=False)
class Member:
    """A worker as the driver sees it.

    Parameters
    ----------
    actor : ActorHandle
        The process.
    lanes : list of Lane
        This end of its lanes; empty if there are none.
    loading : ObjectRef
        Gives its :class:`Surroundings`.
    """

    actor: Any
    lanes: list[Lane]
    loading: Any
    surroundings: Surroundings | None = None
    #: Numbers of the lanes that no chunk uses, of whatever exchange.
    _free_lanes: list[int] = field(default_factory=lambda: list(range(CHUNKS_PER_WORKER)))

    def take_lane(self) -> int | None:
        """Return the number of a lane for a chunk; None if chunks of other exchanges have all."""
        # Exchanges may run in several threads: asking first and popping then would be a race.
        with suppress(IndexError):
            return self._free_lanes.pop(0)
        return None

    def give_lane_back(self, number: int | None) -> None:
        """Let other chunks use a lane: what was in it has been read."""
        if number is not None:
            self._free_lanes.append(number)

    def lane(self, number: int | None) -> Lane | None:
        """Return a lane if the worker has it, too."""
        shared = self.surroundings is not None and self.surroundings.lanes
        return self.lanes[number] if shared and number is not None else None

    def dismiss(self) -> None:
        """End the process, whatever it does."""
        ray.kill(self.actor)
        for lane in self.lanes:
            lane.close()
        self.lanes = []


class Crew:
    """The workers of an executor; a dead one is replaced.

    Parameters
    ----------
    client_app : ClientApp or str
        What they run.
    size : int
        How many there are.
    choices : Choices, optional
        The run's kernels.
    furnishing : Furnishing, optional
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
        choices: Choices | None,
        furnishing: Furnishing | None = None,
        gpus: float = 0.0,
    ) -> None:
        try:
            self._client_app = ray.put(client_app)
        except TypeError as error:
            hint = 'give it as "module:attribute"'
            raise InputError(f"the ClientApp cannot be sent to worker processes; {hint}") from error
        self._choices = choices
        self._furnishing = ray.put(furnishing)
        # A worker that dies on a lost machine must not come back by itself: we replace it.
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(FleetWorker)
        self._lock = threading.Lock()
        #: Seconds that a job of cost 1 took lately, by type of message.
        self.pace: dict[str, float] = {}
        self.tracebacks = Tracebacks()
        self.members = [self._hire() for _ in range(size)]

    def _hire(self) -> Member:
        made = [Lane.create() for _ in range(CHUNKS_PER_WORKER)]
        lanes = [lane for lane, _ in filter(None, made)]
        addresses = [address for _, address in filter(None, made)]
        actor = self._actor.remote(sys.path)
        loading = actor.load.remote(self._client_app, self._choices, self._furnishing, addresses)
        return Member(actor, lanes, loading)

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
            while new := [member for member in self.members if member.surroundings is None]:
                left = max(0.0, until - time.monotonic())
                ready, _ = ray.wait([member.loading for member in new], timeout=left)
                if not ready:
                    raise InputError(self._not_started())
                member = next(member for member in new if member.loading == ready[0])
                try:
                    member.surroundings = _surroundings(member)
                    deaths = 0
                except (RayActorError, OutOfMemoryError) as error:
                    deaths += 1
                    if deaths == MOST_START_DEATHS:
                        raise InputError(
                            f"{deaths} worker processes in a row died while they started; the "
                            "ClientApp may crash when it is imported, or memory may be short"
                        ) from error
                    log.warning("a worker died while it started; another one starts")
                    member.dismiss()
                    self.members[self.members.index(member)] = self._hire()
                    until = time.monotonic() + START_SECONDS

    def _not_started(self) -> str:
        free = int(ray.available_resources().get("CPU", 0))
        return (
            f"{len(self.members)} workers did not start within {START_SECONDS} s: "
            f"the Ray cluster has {free} free cores"
        )

    def replace(self, dead: Member) -> None:
        """Put a new worker in the place of a dead one, once; nobody if no core is left.

        Raises
        ------
        InputError
            If no worker is left.
        """
        with self._lock:
            if dead not in self.members:
                return
            place = self.members.index(dead)
            dead.dismiss()
            others = self.members[:place] + self.members[place + 1 :]
            for _ in range(MOST_HIRES):
                hired = self._hire()
                try:
                    arrives = self._arrives(hired, len(others))
                except (RayActorError, OutOfMemoryError):
                    # Ray may have sent it to a machine that is lost, before it knew.
                    log.warning("a new worker died while it started")
                    hired.dismiss()
                    continue
                if arrives:
                    self.members[place] = hired
                    return
                hired.dismiss()
                break
            if not others:
                raise InputError("the last worker died, and no new one starts")
            log.warning("there is no new worker; %d go on", len(others))
            self.members = others

    def _arrives(self, hired: Member, others: int) -> bool:
        """Wait for a new worker; say whether it starts. A lost machine leaves no core for it."""
        for _ in range(START_SECONDS):
            ready, _ = ray.wait([hired.loading], timeout=1.0)
            if ready:
                hired.surroundings = _surroundings(hired)
                return True
            if others and int(ray.cluster_resources().get("CPU", 0)) <= others:
                return False
        return False

    def dismiss(self) -> None:
        """End all workers, whatever they do."""
        for member in self.members:
            member.dismiss()
        self.members = []


def _surroundings(member: Member) -> Surroundings:
    """Return what a worker found when it had loaded all that it works with.

    Raises
    ------
    InputError
        If it cannot load the ClientApp.
    RayActorError, OutOfMemoryError
        If it died.
    """
    try:
        found: Surroundings = ray.get(member.loading)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):
            raise cause from None
        raise InputError(f"cannot load the ClientApp in a worker: {one_line(cause)}") from error
    return found
