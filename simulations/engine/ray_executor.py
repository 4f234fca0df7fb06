"""Clients on resident Ray actors, one a core."""

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any

import ray
from flwr.clientapp import ClientApp
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from mest_fed.errors import InputError, not_allowed
from mest_fed.kernels.choice import Choices
from simulations.engine.parcel import PackedArrays, Parcel, Return, pack_outcome, unpack_jobs
from simulations.engine.ray_exchange import RayExchange
from simulations.engine.worker import Job, Outcome, load_client_app, run_job

#: How long workers may take to start, which waits for free cores.
START_SECONDS = 120


class FleetWorker:
    """The actor: one process that runs chunks of clients.

    Parameters
    ----------
    search_path : list of str
        Where the server process finds modules; a client's may be there.
    """

    def __init__(self, search_path: list[str]) -> None:
        sys.path.extend(path for path in search_path if path not in sys.path)

    def load(self, client_app: ClientApp | str, choices: Choices | None) -> None:
        """Take the ClientApp that later calls run, and the kernels that it computes with."""
        self._client_app = load_client_app(client_app)
        self._choices = choices

    def run(self, parcels: list[Parcel], *shared: PackedArrays) -> tuple[float, list[Return]]:
        """Run a chunk of clients, in order; return the seconds it took and what came of it."""
        start = time.perf_counter()
        jobs = unpack_jobs(parcels, shared)
        returns = [pack_outcome(run_job(self._client_app, job, self._choices)) for job in jobs]
        return time.perf_counter() - start, returns


class Crew:
    """The actors of an executor; a dead one is replaced."""

    def __init__(self, client_app: ClientApp | str, size: int, choices: Choices | None) -> None:
        try:
            self._client_app = ray.put(client_app)
        except TypeError as error:
            hint = 'give it as "module:attribute"'
            raise InputError(f"the ClientApp cannot be sent to worker processes; {hint}") from error
        self._choices = choices
        self._lock = threading.Lock()
        #: What the last client took; until one is known, clients count as slow.
        self.client_seconds = math.inf
        self.members = [self._hire() for _ in range(size)]
        self._loading = [self._load(member) for member in self.members]

    def _hire(self) -> Any:
        return ray.remote(num_cpus=1)(FleetWorker).remote(sys.path)

    def _load(self, member: Any) -> Any:
        return member.load.remote(self._client_app, self._choices)

    def ensure_loaded(self) -> None:
        """Wait until all have the ClientApp.

        Raises
        ------
        InputError
            If it cannot be loaded there, or the cluster has no cores to spare.
        """
        try:
            ray.get(self._loading, timeout=START_SECONDS)
        except GetTimeoutError as error:
            free = int(ray.available_resources().get("CPU", 0))
            raise InputError(
                f"{len(self.members)} workers did not start within {START_SECONDS} s: "
                f"the Ray cluster has {free} free cores"
            ) from error
        except (RayTaskError, RayActorError) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                raise cause from None
            last_line = str(error).strip().splitlines()[-1]
            raise InputError(f"cannot load the ClientApp in a worker: {last_line}") from error
        self._loading.clear()

    def replace(self, dead: Any) -> None:
        """Put a new actor in the place of a dead one, once."""
        with self._lock:
            if dead in self.members:
                ray.kill(dead)
                hired = self._hire()
                self._load(hired)
                self.members[self.members.index(dead)] = hired

    def dismiss(self) -> None:
        """End all actors, whatever they do."""
        for member in self.members:
            ray.kill(member)
        self.members = []


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
    choices : Choices, optional
        The run's kernels; by default workers choose by the rule.

    Raises
    ------
    InputError
        If the cluster cannot be reached or has fewer cores than workers.
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        workers: int,
        address: str | None = None,
        choices: Choices | None = None,
    ) -> None:
        self._owns_session = not ray.is_initialized()
        if self._owns_session:
            _start_session(workers, address)
        try:
            cores = int(ray.cluster_resources().get("CPU", 0))
            if not 1 <= workers <= cores:
                raise not_allowed("workers", workers, f"1 to {cores}, the cores of the Ray cluster")
            self._crew = Crew(client_app, workers, choices)
        except BaseException:
            self._end_session()
            raise

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
        """See :meth:`simulations.engine.executor.Executor.run`.

        A client whose worker process dies runs again on a new one, at most 3 times in all; then
        it gives an error reply.
        """
        self._crew.ensure_loaded()
        return RayExchange(self._crew, jobs).outcomes()

    def close(self) -> None:
        """End the actors, and the Ray session if this executor started it."""
        if ray.is_initialized():
            self._crew.dismiss()
        self._end_session()

    def _end_session(self) -> None:
        if self._owns_session:
            ray.shutdown()


def _start_session(workers: int, address: str | None) -> None:
    # Ray would count this machine in its usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers see the accelerators of this machine, and Ray has nothing to warn about.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        # "local" starts a cluster even where RAY_ADDRESS names another.
        ray.init("local", num_cpus=workers, include_dashboard=False, **options)
        return
    try:
        _knock(address)
        ray.init(address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the Ray cluster at {address!r}: {error}") from error


def _knock(address: str) -> None:
    """Raise OSError if nobody listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()
