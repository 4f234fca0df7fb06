"""Measuring what some work adds to a process's memory (Linux).

What counts is anonymous memory: what the process allocated and wrote, in RAM or swapped out. Pages
of files (library code, the data's file) do not count, because the kernel drops them when memory is
short. The baseline is taken where the work begins, after imports, loaded data and a warm-up of the
work at a small scale.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mest_fed.errors import MestFedError
from mest_fed.system.allocator import release_freed
from mest_fed.system.proc import (
    can_reset_peak,
    files_of,
    read_sizes,
    read_sizes_and_reset_peak,
)

#: Seconds between two looks at the counters, if nothing else is said.
_INTERVAL = 0.005


@dataclass(frozen=True)
class Measurement:
    """Anonymous memory of a process, in bytes; measured.

    Parameters
    ----------
    baseline : int
        Before the work.
    peak : int
        The most during the work.
    """

    baseline: int
    peak: int

    @property
    def added(self) -> int:
        """What the work added at its peak."""
        return max(0, self.peak - self.baseline)


class Counters(NamedTuple):
    """The kernel's counters of this process, in bytes.

    ``highest`` is the most that was resident since the last reset: ``anonymous`` and ``files``
    together, at one moment.
    """

    anonymous: int = 0
    files: int = 0
    swapped: int = 0
    highest: int = 0


class PeakMeter:
    """Measures this process: ``with PeakMeter() as meter: work()``, then ``meter.added``.

    The kernel keeps a high-water mark of all resident memory, and none of anonymous memory. So a
    thread reads the counters now and then and resets the mark. Between two looks anonymous memory
    was at most the mark less the file pages that were there throughout. So no peak is missed,
    however short, and file pages that come or go between the looks beside a peak are counted.

    Parameters
    ----------
    interval : float
        Seconds between two looks. Each takes about 0.04 ms of a processor (measured).

    Attributes
    ----------
    exact : bool
        Whether the mark could be reset. Else the peak is the most that was seen at a look: a lower
        bound. Without ``/proc`` nothing is measured, and it is 0.
    baseline, peak : int
        Bytes before the work, and the most during it.
    """

    def __init__(self, interval: float = _INTERVAL) -> None:
        self._interval, self.exact = interval, False
        self.baseline = self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._looking, self._last = threading.Lock(), Counters()

    def __enter__(self) -> "PeakMeter":
        release_freed()
        self.exact = can_reset_peak()
        self._last = now = read_counters(reset=self.exact)
        self.baseline = self.peak = now.anonymous + now.swapped
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    @property
    def added(self) -> int:
        """What was added at the peak."""
        return Measurement(self.baseline, self.peak).added

    def look(self) -> None:
        """Take account of what happened since the last look. Several threads may look."""
        with self._looking:
            before, now = self._last, read_counters(reset=self.exact)
            most = now.anonymous
            if self.exact:
                most = max(most, now.highest - min(before.files, now.files))
            self.peak = max(self.peak, most + max(before.swapped, now.swapped))
            self._last = now

    def _watch(self) -> None:
        while not self._done.wait(self._interval):
            self.look()


def can_measure() -> bool:
    """Say whether this system lets a process measure work in a child, and its own peak."""
    return hasattr(os, "fork") and can_reset_peak()


def measure(work: Callable[[], object], warm_up: Callable[[], object]) -> Measurement:
    """Run ``work`` in a forked child and measure its memory.

    Call it from a process with one thread, started with the environment of
    :mod:`mest_fed.system.allocator`.

    Parameters
    ----------
    work : callable
        What to measure; its result and all that it changes are lost with the child.
    warm_up : callable
        The same on a small scale; run first, not measured.

    Raises
    ------
    MestFedError
        If the child fails.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            warm_up()
            with PeakMeter() as meter:
                work()
            os.write(write_end, f"{meter.baseline} {meter.peak}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    if not report:
        raise MestFedError("the measured process failed; its error is on standard error")
    baseline, peak = (int(number) for number in report.split())
    return Measurement(baseline, peak)


def read_counters(*, reset: bool = False) -> Counters:
    """Return this process's counters, and reset ``highest`` if asked; all 0 if nothing is told."""
    sizes = read_sizes_and_reset_peak() if reset else read_sizes()
    resident, files = sizes.get("VmRSS", 0), files_of(sizes)
    swapped, highest = sizes.get("VmSwap", 0), sizes.get("VmHWM", resident)
    return Counters(resident - files, files, swapped, highest)
