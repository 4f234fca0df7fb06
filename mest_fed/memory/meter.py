"""Measuring what a piece of work adds to a process's memory (Linux).

A peak is resident memory's high-water mark, reset where the work begins. The baseline is resident
memory at that moment: after imports, loaded data, and a rehearsal of the work at a small scale, so
that pages of library code count as imports and not as the work's.
"""

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mest_fed.errors import MestFedError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

#: What glibc must be told before a process starts, so that freed memory leaves it and the figure
#: is about the work and not about arenas.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@dataclass(frozen=True)
class Measurement:
    """Resident memory of a process, in bytes; measured.

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


class PeakMeter:
    """Measures this process: ``with PeakMeter() as meter: work()``, then ``meter.added``.

    Attributes
    ----------
    exact : bool
        Whether the high-water mark could be reset. Else the peak is the process's own so far, which
        may be of earlier work: an upper bound.
    """

    def __init__(self) -> None:
        self.exact = False
        self.baseline = self.peak = 0

    def __enter__(self) -> "PeakMeter":
        release_freed()
        self.exact = can_reset()
        if self.exact:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        self.baseline = self.now()
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = self.so_far()

    @staticmethod
    def now() -> int:
        """Return resident memory now, in bytes; 0 where the system does not say."""
        return _resident("VmRSS")

    @staticmethod
    def so_far() -> int:
        """Return the high-water mark since the last reset, in bytes; 0 where nobody says."""
        return _resident("VmHWM")

    @property
    def added(self) -> int:
        """What was added at the peak."""
        return Measurement(self.baseline, self.peak).added


def can_reset() -> bool:
    """Say whether this process may reset its high-water mark."""
    return os.access(_CLEAR_REFS, os.W_OK)


def can_measure() -> bool:
    """Say whether this system lets a process measure work in a child, and its own peak."""
    return hasattr(os, "fork") and can_reset()


def release_freed() -> None:
    """Have the C library give back what was freed; does nothing beside glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def measure(work: Callable[[], object], warm_up: Callable[[], object]) -> Measurement:
    """Run ``work`` in a forked child and measure its memory.

    Call it from a process with one thread, started with :data:`ALLOCATOR_ENVIRONMENT`.

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
        raise MestFedError("the measured process failed; its error stands above")
    baseline, peak = (int(number) for number in report.split())
    return Measurement(baseline, peak)


def _resident(field: str) -> int:
    try:
        status = _STATUS.read_text()
    except OSError:  # no /proc
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
