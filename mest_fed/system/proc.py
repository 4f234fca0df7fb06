"""What Linux's ``/proc`` says of processes: memory, state, environment.

The one place that reads it, but for control groups (:mod:`mest_fed.system.cgroups`). Elsewhere than
on Linux there is nothing to read, and each function says so by its result. It needs the standard
library alone: a process that guards others imports it.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")

_STATUS = PROC / "self" / "status"
_CLEAR_REFS = PROC / "self" / "clear_refs"
#: What resets a process's high-water mark of resident memory.
_RESET_PEAK = b"5"
#: No status is as long as this.
_STATUS_BYTES = 1 << 14
#: A process with this number is the first that the kernel kills when memory runs out.
_FIRST_TO_KILL = "1000"


def read_sizes(pid: int | str = "self", proc: Path = PROC) -> dict[str, int]:
    """Return the sizes in a process's ``status`` by name, in bytes; none if it has ended.

    ``VmSize`` is its address space, ``VmRSS`` what is resident, ``RssAnon`` and ``RssFile`` the
    parts of that, ``VmHWM`` its peak, ``VmSwap`` what is swapped out. Sandboxes may lack some.
    """
    return _sizes(_STATUS if pid == "self" and proc is PROC else proc / str(pid) / "status")


def files_of(sizes: Mapping[str, int]) -> int:
    """Return what is resident of files and of memory that is shared, by a process's sizes."""
    resident = sizes.get("VmRSS", 0)
    return resident - sizes.get("RssAnon", resident)  # some sandboxes do not tell them apart


def read_shares(pid: int | str = "self", proc: Path = PROC) -> dict[str, int]:
    """Return the sizes in a process's ``smaps_rollup`` by name, in bytes; or none.

    ``Pss`` is what is resident, each page divided by the number of processes that map it: summed
    over a tree of processes, a shared page counts once. ``Rss`` counts it in each. Reading walks
    the process's pages, which takes milliseconds.
    """
    return _sizes(proc / str(pid) / "smaps_rollup")


def _sizes(file: Path) -> dict[str, int]:
    try:
        return _parsed(file.read_bytes())
    except OSError:
        return {}


def _parsed(text: bytes) -> dict[str, int]:
    pairs = (line.partition(b":") for line in text.splitlines() if line.endswith(b" kB"))
    return {name.decode(): 1024 * int(value[:-3]) for name, _, value in pairs}


def resident_bytes(proc: Path = PROC) -> int:
    """Return the resident memory of this process; its peak where the system tells nothing else."""
    resident = read_sizes("self", proc).get("VmRSS")
    if resident is not None:
        return resident
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Stat(NamedTuple):
    """A process that has not ended.

    Parameters
    ----------
    parent : int
        Id of its parent.
    start : str
        When it started, in ticks since the machine did: with its id, no other process has that.
    """

    parent: int
    start: str


def read_stat(pid: int) -> Stat | None:
    """Return what is known of a process; None if it has ended or was never there."""
    with suppress(OSError):  # it has ended, or this is not Linux
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        state, parent, *rest = text.rpartition(")")[2].split()
        if state not in "ZX":
            return Stat(int(parent), rest[17])
    return None


def process_ids() -> list[int]:
    """Return the ids of all processes that this one can see."""
    with suppress(OSError):  # another system than Linux
        return [int(name) for name in os.listdir(PROC) if name.isdecimal()]
    return []


def can_read_environments() -> bool:
    """Say whether this system shows processes' environments."""
    return (PROC / "self" / "environ").exists()


def read_variable(pid: int, name: str) -> str | None:
    """Return a variable of the environment that a process was started with; None if it has none.

    None, too, if the process has ended or belongs to another user.
    """
    start = f"{name}=".encode()
    with suppress(OSError):  # it has ended, or may not be read
        for item in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if item.startswith(start):
                return item[len(start) :].decode(errors="replace")
    return None


def process_namespace() -> str:
    """Return what tells this process's numbering of processes from that of other containers."""
    with suppress(OSError):  # another system than Linux
        return os.readlink(PROC / "self" / "ns" / "pid")
    return ""


def can_reset_peak() -> bool:
    """Say whether this process may reset its high-water mark of resident memory."""
    return os.access(_CLEAR_REFS, os.W_OK)


def reset_peak() -> None:
    """Set this process's high-water mark to what is resident now.

    Raises
    ------
    OSError
        If that is not permitted.
    """
    _CLEAR_REFS.write_bytes(_RESET_PEAK)


def read_sizes_and_reset_peak() -> dict[str, int]:
    """Return :func:`read_sizes` of this process, and reset its peak at the same moment.

    Between a call of the one and a call of the other another thread may run for milliseconds; what
    it used and freed in that time would be in no peak. Here no other thread of Python runs between
    the two: both are calls in C that keep the interpreter's lock, and so is what goes from the one
    to the other.

    Raises
    ------
    OSError
        If that is not permitted.
    """
    libc = _locked_libc()
    room = ctypes.create_string_buffer(_STATUS_BYTES)
    with open(_STATUS, "rb", 0) as status, open(_CLEAR_REFS, "wb", 0) as clear:
        read = partial(libc.read, status.fileno(), room, _STATUS_BYTES)
        reset = partial(libc.write, clear.fileno(), _RESET_PEAK, len(_RESET_PEAK))
        size, written = map(partial.__call__, (read, reset))
        if min(size, written) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return _parsed(room.raw[:size])


@cache
def _locked_libc() -> ctypes.PyDLL:
    """Return the C library, whose calls keep the interpreter's lock."""
    return ctypes.PyDLL(None, use_errno=True)


def offer_to_be_killed() -> None:
    """Have the kernel kill this process before others when memory runs out, if it lets us."""
    with suppress(OSError):  # it is a request, which the system may refuse
        (PROC / "self" / "oom_score_adj").write_text(_FIRST_TO_KILL, "ascii")
