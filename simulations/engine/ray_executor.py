"""Clients on resident Ray actors, one a core."""

import math
import time
from collections.abc import Iterator

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp

from mest_fed.errors import not_allowed
from mest_fed.folding import Fold
from mest_fed.kernels.choice import Choices
from simulations.engine.crew import Crew, Furnishing
from simulations.engine.machine import cores_and_gpus, gpu_share
from simulations.engine.ray_exchange import RayExchange
from simulations.engine.session import Session
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
        If Ray cannot start, or the cluster cannot be reached or has fewer cores than workers.
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
        self._session = Session(workers, address)
        try:
            machines = [cores_and_gpus(node) for node in ray.nodes()]
            cores = sum(cores for cores, _ in machines)
            if not 1 <= workers <= cores:
                raise not_allowed("workers", workers, f"1 to {cores}, the cores of the Ray cluster")
            gpus = gpu_share(workers, machines)
            self._crew = Crew(client_app, workers, choices, furnishing, gpus)
        except BaseException:
            self._session.end()
            raise

    def ensure_ready(self) -> None:
        """See :meth:`simulations.engine.executor.Executor.ensure_ready`."""
        self._crew.ensure_loaded()

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
        self._session.end()
