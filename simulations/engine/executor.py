"""Executors run clients and give their outcomes in the order of the jobs, whatever runs where."""

import threading
from collections.abc import Generator, Iterable
from typing import Protocol

from flwr.clientapp import ClientApp

from mest_fed.errors import not_allowed
from mest_fed.kernels.choice import Choices
from simulations.engine.worker import Job, Outcome, load_client_app, run_job


class Executor(Protocol):
    """Where clients run."""

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
        """Run jobs of distinct nodes; the n-th outcome is that of the n-th job.

        Jobs are taken, and run, as outcomes are asked for, with a bounded look-ahead.
        """

    def close(self) -> None:
        """Stop the processes that this executor started."""


class SerialExecutor:
    """Runs clients in this process, one after the other.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"``.
    choices : Choices, optional
        The run's kernels; by default those of this process.

    Raises
    ------
    InputError
        If there is no such ClientApp.
    """

    def __init__(self, client_app: ClientApp | str, choices: Choices | None = None) -> None:
        self._client_app = load_client_app(client_app)
        self._choices = choices
        # Flower's older strategies call from a pool of threads.
        self._lock = threading.Lock()

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
        """See :meth:`Executor.run`."""
        for job in jobs:
            with self._lock:
                outcome = run_job(self._client_app, job, self._choices)
            yield outcome

    def close(self) -> None:
        """Nothing to stop."""


def make_executor(
    client_app: ClientApp | str,
    workers: int,
    address: str | None = None,
    choices: Choices | None = None,
) -> Executor:
    """Return a serial executor for 0 workers, else one with that many Ray processes.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"``.
    workers : int
        Number of worker processes, one core each.
    address : str, optional
        Ray cluster to join, for example ``"auto"`` or ``"10.0.0.1:6379"``; by default a cluster
        of this machine alone is started.
    choices : Choices, optional
        The run's kernels, for all workers, wherever they are.

    Raises
    ------
    InputError
        If there is no such ClientApp, or the cluster has too few cores.
    """
    if workers < 0:
        raise not_allowed("workers", workers, "a whole number from 0")
    if workers == 0:
        return SerialExecutor(client_app, choices)
    from simulations.engine.ray_executor import RayExecutor  # only those who want workers need Ray

    return RayExecutor(client_app, workers, address, choices)
