"""Memory and processor time of a process and all it started, by what they are for."""

import threading
import time
from dataclasses import dataclass, field

import psutil

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


@dataclass
class TreeMeter:
    """Samples the tree of a process in a thread of its own until it ends.

    Parameters
    ----------
    pid : int
        The process.
    interval : float
        Seconds between two samples.
    """

    pid: int
    interval: float = 0.25
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> "TreeMeter":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        root = psutil.Process(self.pid)
        spent: dict[int, float] = {}  # by process; what has ended keeps what it took
        while not self._stop.wait(self.interval):
            try:
                tree = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            sizes: dict[str, int] = {}
            at = time.time()
            for process in tree:
                try:
                    kind = kind_of(process.cmdline(), is_root=process.pid == self.pid)
                    size = process.memory_full_info().pss
                    times = process.cpu_times()
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue  # it has ended meanwhile
                sizes[kind] = sizes.get(kind, 0) + size
                if kind in (DRIVER, WORKERS):
                    spent[process.pid] = times.user + times.system
            self.samples.append(Sample(at, sizes, sum(spent.values())))


def kind_of(command: list[str], *, is_root: bool) -> str:
    """Return what a process of the tree is for, from its command line."""
    if is_root:
        return DRIVER
    text = " ".join(command)
    if "FleetWorker" in text:
        return WORKERS
    return RAY if "/ray/" in text or text.startswith("ray::") else HELPERS
