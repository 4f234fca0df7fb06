"""Measuring what a piece of work adds to a process's memory (Linux).

The work runs in a forked child, whose high-water mark of resident memory is reset after a warm-up.
The warm-up should do the same on a small scale, so that what any first training brings in counts
as imports and loaded data: with torch 2.13 that is about 90 MB of library code alone.
"""

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
        return self.peak - self.baseline


def can_measure() -> bool:
    """Say whether this system lets a process measure its own peak."""
    return hasattr(os, "fork") and os.access(_CLEAR_REFS, os.W_OK)


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
            _CLEAR_REFS.write_text(_RESET_PEAK)
            baseline = _resident("VmRSS")
            work()
            os.write(write_end, f"{baseline} {_resident('VmHWM')}".encode())
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
    return Measurement(baseline, max(peak, baseline))


def _resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise MestFedError(f"{_STATUS} has no {field}")
    return int(match[1]) * 1024
