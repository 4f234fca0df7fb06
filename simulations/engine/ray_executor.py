"""Clients on resident Ray actors, one a core."""

import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp

from mest_fed.errors import InputError, not_allowed
from mest_fed.folding import Fold
from mest_fed.kernels.choice import Choices
from simulations.engine.crew import Crew, Furnishing
from simulations.engine.ray_exchange import RayExchange
from simulations.engine.worker import Job


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
    furnishing : Furnishing, optional
        What each worker gets before its first client.
    patience : float
        Seconds of wall-clock time after which a client counts as hung: its process is ended, and
        it gives an error reply.

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
        *,
        choices: Choices | None = None,
        furnishing: Furnishing | None = None,
        patience: float = math.inf,
    ) -> None:
        self._patience = patience
        self._owns_session = not ray.is_initialized()
        if self._owns_session:
            _start_session(workers, address)
        try:
            cores = int(ray.cluster_resources().get("CPU", 0))
            if not 1 <= workers <= cores:
                raise not_allowed("workers", workers, f"1 to {cores}, the cores of the Ray cluster")
            self._crew = Crew(client_app, workers, choices, furnishing)
        except BaseException:
            self._end_session()
            raise

    def open(
        self,
        jobs: Iterator[Job],
        *,
        fold: Fold[Message] | None = None,
        timeout: float | None = None,
    ) -> RayExchange:
        """See :meth:`simulations.engine.executor.Executor.open`.

        A client whose worker process dies runs again on a new one, at most 3 times in all; then
        it gives an error reply.
        """
        self._crew.ensure_loaded()
        stop_at = math.inf if timeout is None else time.monotonic() + timeout
        return RayExchange(self._crew, jobs, fold=fold, stop_at=stop_at, patience=self._patience)

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
