"""Memory and processor time of a process and all it started, by what they are for."""

import time
from dataclasses import dataclass

import psutil
from sampling import Sampler

#: Whose memory is told apart: the process itself, Ray's workers that run clients, processes that
#: the driver started for itself, and Ray's own (raylet, gcs_server, log monitor, idle workers).
DRIVER, WORKERS, HELPERS, RAY = "driver", "workers", "helpers", "ray"
#: What simulates; the rest is Ray's.
OURS = (DRIVER, WORKERS, HELPERS)


@dataclass(frozen=True)
class Sample:
    """Proportional set sizes and processor time at one moment.

    Parameters
    ----------
    at : float
        Seconds of ``time.time``.
    sizes : dict of str to int
        Bytes by kind of process. A page that several processes share, as they do Ray's object
        store, counts once in all.
    cpu : float
        Seconds of processor time that driver and workers have taken since they began.
    """

    at: float
    sizes: dict[str, int]
    cpu: float

    @property
    def ours(self) -> int:
        """Bytes of what simulates."""
        return sum(self.sizes.get(kind, 0) for kind in OURS)


class TreeMeter(Sampler[Sample]):
    """Samples the tree of a process.

    Parameters
    ----------
    pid : int
        The process.
    interval : float
        Seconds from the end of a sample to the beginning of the next.
    """

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        super().__init__(interval)
        self._root = psutil.Process(pid)
        self._spent: dict[int, float] = {}  # by process; what has ended keeps what it took

    def take(self) -> Sample | None:
        """Look at the tree; None if it has ended."""
        try:
            tree = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return None
        sizes: dict[str, int] = {}
        at = time.time()
        for process in tree:
            try:
                kind = kind_of(process.cmdline(), is_root=process == self._root)
                size = process.memory_full_info().pss
                times = process.cpu_times()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has ended meanwhile
            sizes[kind] = sizes.get(kind, 0) + size
            if kind in (DRIVER, WORKERS):
                self._spent[process.pid] = times.user + times.system
        return Sample(at, sizes, sum(self._spent.values()))


def kind_of(command: list[str], *, is_root: bool) -> str:
    """Return what a process of the tree is for, from its command line."""
    if is_root:
        return DRIVER
    text = " ".join(command)
    if "FleetWorker" in text:
        return WORKERS
    return RAY if "/ray/" in text or text.startswith("ray::") else HELPERS
