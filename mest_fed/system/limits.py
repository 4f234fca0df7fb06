"""A memory limit that the operating system holds for a process, and what it leaves for training.

First of what is there: a control group of version 2, if memory has been delegated to this process;
one of version 1; RLIMIT_AS. Elsewhere than on Linux nothing holds the limit, and the result says
so. Needs neither torch nor NumPy.
"""

import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mest_fed.errors import InputError, MestFedError, not_allowed
from mest_fed.system.cgroups import UNLIMITED, Cgroup, CgroupLimit, enter, own_cgroups
from mest_fed.system.proc import PROC, read_sizes, resident_bytes
from mest_fed.units import format_bytes

#: Share of a memory limit that stays free if nothing else is said: ``memory.margin``.
MARGIN = 0.05

CGROUP_2, CGROUP_1, RLIMIT, NOTHING = "cgroup v2", "cgroup v1", "RLIMIT_AS", "nothing"

_WHOLE = "counts this process and its children together; file cache is dropped before any is killed"
_WITHOUT_SWAP = "; swap is not counted, so what is swapped out escapes the limit"
_ADDRESSES = (
    "bounds the address space of each process by itself to {soft}: the limit, and {extra} that a "
    "ClientApp reserves without using it (measured); an allocation beyond it fails. A process that "
    "used what it reserves would pass the limit (a delegated cgroup is exact)"
)
_UNHELD = "this system offers no limit that mest-fed knows; only the plan keeps within the bytes"


@dataclass(frozen=True)
class MemoryLimit:
    """A limit that stands until it is released; as a context manager, until the block ends.

    Parameters
    ----------
    kind : str
        What holds it: ``cgroup v2``, ``cgroup v1``, ``RLIMIT_AS`` or ``nothing``.
    bytes : int
        The limit.
    caveat : str
        What it counts and what it does not, in one line.
    cgroup_limit : CgroupLimit or None
        The control group that holds it, if one does.
    undo : callable
        Takes the limit back.
    """

    kind: str
    bytes: int
    caveat: str
    cgroup_limit: CgroupLimit | None
    undo: Callable[[], object]

    def release(self) -> None:
        """Take the limit back, and remove its group.

        Raises
        ------
        MestFedError
            If other processes still run in the group.
        """
        self.undo()

    def __enter__(self) -> "MemoryLimit":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def limit_memory(
    limit: int,
    *,
    pid: int | None = None,
    reserved: Callable[[], int] | None = None,
    proc: Path = PROC,
) -> MemoryLimit:
    """Have the operating system limit the memory of a process and its future children.

    What the process holds already stays charged where it is; only RLIMIT_AS counts it.

    Parameters
    ----------
    limit : int
        Bytes of resident memory.
    pid : int, optional
        The process; this one if left out.
    reserved : callable, optional
        Asked only for RLIMIT_AS: bytes of address space that will be reserved and not resident
        (torch reserves much). Left out, those of the process now.
    proc : Path
        Where the kernel's ``proc`` is mounted.

    Raises
    ------
    InputError
        If the limit is not positive, or RLIMIT_AS would hold it and the process is larger.
    """
    if limit < 1:
        raise not_allowed("memory limit", limit, "a positive number of bytes")
    pid = os.getpid() if pid is None else pid
    for parent_group in own_cgroups(proc, pid):
        with suppress(OSError):  # a group that this process may not change: the next is tried
            return _with_cgroup(parent_group, limit, pid)
    if not sys.platform.startswith("linux"):
        return MemoryLimit(NOTHING, limit, _UNHELD, None, lambda: None)
    return _with_rlimit(limit, pid, reserved, proc)


def kind_of_limit() -> str:
    """Return what would hold a memory limit of this process, which is under none for longer.

    The process enters a limit that is too large to hold it back, and leaves it.
    """
    with limit_memory(UNLIMITED // 2) as limit:
        return limit.kind


#: What a limit has to hold beside what was measured so far, where that is not known yet.
NOT_COUNTED = "not counted, and to be added: what the run's examples and its smallest plan take"
#: From one start to the next, what a process takes before training differs by less.
_SPREAD = 1.04


def usable(limit: int, margin: float) -> int:
    """Return the bytes of a limit that its processes may use: all but the margin."""
    return int(limit * (1 - margin))


def left_within(limit: int, taken: int, margin: float) -> int:
    """Return what a limit leaves beside its margin and what is taken; below 0, what lacks."""
    return usable(limit, margin) - taken


def left_for_training(limit: int, taken: int, margin: float, key: str = "memory-limit") -> int:
    """Return the bytes that a memory limit leaves for training.

    Parameters
    ----------
    limit : int
        Of all processes that are charged against it.
    taken : int
        Bytes that they take before training.
    margin : float
        Share of the limit that stays free; in [0, 1).
    key : str
        What gave the limit, for error messages.

    Raises
    ------
    InputError
        If it leaves none.
    """
    left = left_within(limit, taken, margin)
    if left < 1:
        raise not_allowed(
            key,
            format_bytes(limit),
            f"more than {format_bytes(taken / (1 - margin))}: {format_bytes(taken)} are taken "
            f"before training (measured), and {margin:.0%} stay free; {NOT_COUNTED}",
        )
    return left


def no_plan_in(budget: int, needs: int, key: str) -> InputError:
    """Return the error for a budget in which no plan fits, where the smallest needs more."""
    return not_allowed(
        key,
        format_bytes(budget),
        f"at least {needs} bytes ({format_bytes(needs)}), which the smallest plan needs (modelled)",
    )


def too_tight(limit: int, taken: int, needs: int, margin: float, key: str) -> InputError:
    """Return the error for a limit that leaves something for training, but too little for a plan.

    Parameters
    ----------
    limit, taken, margin, key
        As of :func:`left_for_training`; ``taken`` is all that there is before training.
    needs : int
        Bytes that the smallest plan needs.
    """
    enough = _SPREAD * (taken + needs) / (1 - margin)
    return not_allowed(
        key,
        format_bytes(limit),
        f"at least {format_bytes(enough)}: {format_bytes(taken)} are taken before training "
        f"(measured), the smallest plan needs {format_bytes(needs)} (modelled), {margin:.0%} stay "
        f"free, and {_SPREAD - 1:.0%} are for what differs from start to start",
    )


def limit_of_process(proc: Path = PROC) -> int | None:
    """Return the tightest limit that this process is under, in bytes; None if there is none.

    A limit of the address space counts less what is reserved and not resident.
    """
    bounds = _bounds(proc)
    return min(bounds, key=lambda bound: bound[0])[0] if bounds else None


def memory_of_machine() -> int | None:
    """Return the memory of this machine in bytes; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def usage(proc: Path = PROC) -> int:
    """Return the bytes now charged against :func:`limit_of_process`.

    Of a control group: what its processes cannot do without (:meth:`Cgroup.usage`). Otherwise the
    resident memory of this process, or its peak where that is all the system tells.
    """
    bounds = _bounds(proc)
    return min(bounds, key=lambda bound: bound[0])[1]() if bounds else resident_bytes(proc)


def _bounds(proc: Path) -> list[tuple[int, Callable[[], int]]]:
    """Return every limit on this process, with how to learn what is charged against it."""
    bounds: list[tuple[int, Callable[[], int]]] = []
    for own in own_cgroups(proc):
        for group in own.lineage():
            limit = group.limit()
            if limit is not None:
                bounds.append((limit, group.usage))
    with suppress(OSError):  # another system than Linux
        text = (proc / "self" / "limits").read_text("ascii")
        soft = re.search(r"^Max address space\s+(\d+)", text, re.MULTILINE)
        if soft and int(soft[1]) < UNLIMITED:
            resident = resident_bytes(proc)
            reserved = read_sizes("self", proc).get("VmSize", resident) - resident
            bounds.append((max(0, int(soft[1]) - reserved), lambda: resident_bytes(proc)))
    return bounds


def _with_cgroup(parent_group: Cgroup, limit: int, pid: int) -> MemoryLimit:
    held = enter(parent_group, limit, pid)
    kind = CGROUP_2 if parent_group.version == 2 else CGROUP_1
    caveat = _WHOLE if held.counts_swap else _WHOLE + _WITHOUT_SWAP
    return MemoryLimit(kind, limit, caveat, held, lambda: held.leave(pid))


def _with_rlimit(
    limit: int, pid: int, reserved: Callable[[], int] | None, proc: Path
) -> MemoryLimit:
    sizes = read_sizes(pid, proc)
    resident = sizes.get("VmRSS")
    if resident is None:
        raise MestFedError(f"process {pid} has ended")
    extra = sizes.get("VmSize", resident) - resident if reserved is None else reserved()
    if limit <= resident:
        raise not_allowed("memory limit", limit, f"more than {resident} bytes, which are in use")
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    soft, hard = extra + limit, before[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))

    def undo() -> None:
        with suppress(ProcessLookupError):  # it has ended
            resource.prlimit(pid, resource.RLIMIT_AS, before)

    caveat = _ADDRESSES.format(soft=format_bytes(soft), extra=format_bytes(soft - limit))
    return MemoryLimit(RLIMIT, limit, caveat, None, undo)
