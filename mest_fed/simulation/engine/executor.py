"""Executors run clients and give their outcomes in the order of the jobs, whatever runs where."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

from flwr.app import Message
from flwr.clientapp import ClientApp

from mest_fed.errors import not_allowed
from mest_fed.references import absolute_reference
from mest_fed.server.aggregation.partial import PairwiseSum, PartialAggregate, WorkerAggregator
from mest_fed.server.flower_internals import rebuild_message
from mest_fed.simulation.engine.client_output import ClientLog
from mest_fed.simulation.engine.client_runner import (
    ClientRunner,
    Job,
    Outcome,
    TaskTimeout,
    load_client_app,
    private_copy,
)


class Exchange(Protocol):
    """Jobs on their way."""

    def take(self) -> Outcome | TaskTimeout | None:
        """Return the outcome of the next job, in the order of the jobs; None if there is no job.

        Jobs are taken, and run, as outcomes are asked for, with a bounded look-ahead. Jobs may
        come later: None is no end. After a timeout, outcomes that came before still do, and
        ``TaskTimeout`` stands for those between them that did not.
        """

    def send(self) -> None:
        """Have jobs run ahead, as far as there is room, without waiting for any."""

    def total(self) -> PartialAggregate | None:
        """Return the sum of what was aggregated out of the replies taken so far."""

    def close(self) -> None:
        """Discard the outcomes that are still being computed."""


class Executor(Protocol):
    """Where clients run."""

    def ensure_ready(self) -> None:
        """Wait until clients can run.

        Raises
        ------
        InputError
            If they cannot: the ClientApp cannot be loaded, or no worker starts.
        """

    def open(
        self,
        jobs: Iterator[Job],
        *,
        aggregator: WorkerAggregator[Message] | None = None,
        timeout: float | None = None,
    ) -> Exchange:
        """Begin an exchange.

        Parameters
        ----------
        jobs : iterator of Job
            Jobs of distinct nodes.
        aggregator : WorkerAggregator, optional
            Sums replies where they are made.
        timeout : float, optional
            Seconds of wall-clock time from now on after which nothing is computed any more.
        """

    def close(self) -> None:
        """Stop the processes that this executor started."""


class SerialExecutor:
    """Runs clients in this process, one after the other.

    A client that never returns cannot be stopped here; workers can.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"`` or ``"file.py:attribute"``.

    Raises
    ------
    InputError
        If there is no such ClientApp.
    """

    def __init__(self, client_app: ClientApp | str) -> None:
        self._runner = ClientRunner(load_client_app(client_app))
        self._client_log = ClientLog()
        # Flower's older strategies call from a pool of threads.
        self._lock = threading.Lock()

    def ensure_ready(self) -> None:
        """See :meth:`Executor.ensure_ready`."""

    def open(
        self,
        jobs: Iterator[Job],
        *,
        aggregator: WorkerAggregator[Message] | None = None,
        timeout: float | None = None,
    ) -> "SerialExchange":
        """See :meth:`Executor.open`."""
        stop_at = None if timeout is None else time.monotonic() + timeout
        return SerialExchange(
            self._runner, jobs, self._lock, self._client_log, aggregator=aggregator, stop_at=stop_at
        )

    def close(self) -> None:
        """Nothing to stop."""


class SerialExchange:
    """See :class:`Exchange`."""

    def __init__(
        self,
        runner: ClientRunner,
        jobs: Iterator[Job],
        lock: threading.Lock,
        client_log: ClientLog,
        *,
        aggregator: WorkerAggregator[Message] | None,
        stop_at: float | None,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._lock = lock
        self._client_log = client_log
        self._aggregator = aggregator
        self._stop_at = math.inf if stop_at is None else stop_at
        self._sum = PairwiseSum()

    def take(self) -> Outcome | None:
        """See :meth:`Exchange.take`."""
        if time.monotonic() >= self._stop_at:
            return None
        job = next(self._jobs, None)
        if job is None:
            return None
        with self._lock, self._runner.generators.kept():
            block = self._runner.run([job], self._aggregator)
        if time.monotonic() >= self._stop_at:
            return None
        self._client_log.write(block.printed)
        self._sum.add(block.partial)
        return _apart(block.outcomes[0])

    def send(self) -> None:
        """Clients run as their outcomes are asked for."""

    def total(self) -> PartialAggregate | None:
        """See :meth:`Exchange.total`."""
        return self._sum.total()

    def close(self) -> None:
        """Nothing runs between two outcomes."""


def _apart(outcome: Outcome) -> Outcome:
    """Return an outcome whose records are the server's alone, as after a journey.

    Reply and state may share records with each other, and with what the client still holds.
    """
    reply, state = outcome.reply, private_copy(outcome.state)
    if reply.has_error():
        return Outcome(outcome.task_result, state)
    reply = rebuild_message(reply.metadata, private_copy(reply.content))
    return Outcome(replace(outcome.task_result, reply=reply), state)


def make_executor(
    client_app: ClientApp | str,
    workers: int,
    address: str | None = None,
    **options: Any,
) -> Executor:
    """Return a serial executor for 0 workers, else one with that many Ray processes.

    Parameters
    ----------
    client_app : ClientApp or str
        The client, as an object or as ``"module:attribute"`` or ``"file.py:attribute"``.
    workers : int
        Number of worker processes, one core each.
    address : str, optional
        Ray cluster to join, for example ``"auto"`` or ``"10.0.0.1:6379"``; by default a cluster
        of this machine alone is started.
    **options
        Further options of :class:`mest_fed.simulation.engine.ray_executor.RayExecutor`.

    Raises
    ------
    InputError
        If there is no such ClientApp, or the cluster has too few cores.
    """
    if workers < 0:
        raise not_allowed("workers", workers, "a whole number from 0")
    if workers == 0:
        return SerialExecutor(client_app)
    if isinstance(client_app, str):
        client_app = absolute_reference(client_app)  # workers have folders of their own
    # Only those who want workers need Ray.
    from mest_fed.simulation.engine.ray_executor import RayExecutor

    return RayExecutor(client_app, workers, address, **options)
