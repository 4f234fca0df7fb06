"""The Ray session that a run has: one of its own on this machine, or a cluster that it joins.

A session of its own ends with the process that started it, even if that is killed. Ray's processes
notice that by themselves only after up to a minute. So each of them carries a mark in its
environment, and a small process beside the driver ends those with the mark once the driver is gone.
Where that was killed as well, the next session does it.
"""

import os
import random
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import ray

from mest_fed.errors import InputError
from mest_fed.simulation.engine import marked
from mest_fed.simulation.engine.client_runner import one_line
from mest_fed.simulation.engine.machine import free_memory
from mest_fed.system.proc import can_read_environments

#: Seconds that a cluster may take to report, which takes milliseconds.
ANSWER_SECONDS = 5
#: Of free memory, for what Ray's processes share: Ray's own rule, but of what a limit leaves. It
#: refuses less than 75 MiB, and more than 10 GB where /dev/shm is smaller.
_SHARED_PART = 0.3
_SHARED_BYTES = (80 << 20, 10**10)
#: Of Ray's processes, by their environment. The names that Ray gives them stay out of that. No
#: worker starts before it is asked for: where one such dies, ``ray.init`` would wait for ever. One
#: that dies before it has registered with Ray is missed after 30 s instead of 60.
_OPTIONS = {
    "SPT_NOENV": "1",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_register_timeout_seconds": "30",
}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}


class Session:
    """The Ray session of this process, which :meth:`end` ends if this started it.

    Parameters
    ----------
    workers : int
        Cores of a session that is started.
    address : str, optional
        Ray cluster to join. By default the session that this process has already, else a new one
        on this machine, without dashboard.

    Raises
    ------
    InputError
        If Ray cannot start, or the cluster does not report.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self._guard: subprocess.Popen[bytes] | None = None
        self._owned = not ray.is_initialized()
        if not self._owned:
            return
        # Ray would count this machine in its usage statistics.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A worker that asks for no GPU sees those that its machine has.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        joined = f"cannot join the Ray cluster at {address!r}"
        what = "Ray cannot start" if address is None else joined
        hint = "; allowed: --workers 0, which needs no Ray" if address is None else ""
        try:
            with _signals_kept(), _random_kept():
                if address is None:
                    self._start(workers)
                else:
                    _knock(address)
                    ray.init(address, **_QUIET)
        # Ray leaves by SystemExit in places.
        except (Exception, SystemExit) as error:
            self.end()
            reason = str(error) if isinstance(error, Exception) else one_line(error)
            raise InputError(f"{what}: {reason}{hint}") from error

    def end(self) -> None:
        """End the session if this started it."""
        if self._owned:
            ray.shutdown()
        if self._guard is not None:
            self._guard.communicate()  # closes its standard input
            self._guard = None

    def _start(self, workers: int) -> None:
        mark = f"{marked.own_mark()}/{secrets.token_hex(8)}"
        if can_read_environments():
            marked.end_orphans()
            self._guard = subprocess.Popen(
                marked.guard_command(mark),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the driver
            )
        with _environment({marked.NAME: mark} | _OPTIONS):
            # "local" starts a session even where RAY_ADDRESS names a cluster.
            ray.init(
                "local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_shared_bytes(),
                **_QUIET,
            )


def _shared_bytes() -> int:
    least, most = _SHARED_BYTES
    return max(least, min(most, int(_SHARED_PART * free_memory())))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have child processes that are started in the block find variables in their environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put the handler of SIGTERM back: Ray sets one that hides the signal from the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _random_kept() -> Iterator[None]:
    """Put :mod:`random` back: Ray draws from it as it starts, and Flower's strategies later."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _knock(address: str) -> None:
    """Raise OSError if no cluster answers there: Ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _last_cluster()
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    if not (host and port.isdecimal()):
        return
    socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise OSError(f"what listens there gave no report in {ANSWER_SECONDS} s") from None


def _last_cluster() -> str:
    """Return the address of the cluster that ``ray start`` started here last, or nothing."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with suppress(OSError):  # no cluster was started here
        return (Path(folder) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
    return ""
