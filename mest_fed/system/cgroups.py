"""Control groups (Linux) of memory and processor time: where this process is, what they allow.

Version 1 has a tree for each controller, version 2 one tree for all. Either may be mounted
anywhere, and a container sees a part of it: ``/proc/self/mountinfo`` tells.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath

from mest_fed.errors import MestFedError
from mest_fed.system.proc import PROC

PROCESSES = "cgroup.procs"
#: Version 1 has no word for "unlimited": it shows its largest number of pages, which differs.
UNLIMITED = 2**42
#: What of version 1's and version 2's memory.stat cannot be taken back from a process at work.
_HELD = {
    1: ("total_rss", "total_mapped_file", "total_shmem"),
    2: ("anon", "file_mapped", "shmem", "kernel", "sock"),
}
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
_EVENTS = {1: "memory.oom_control", 2: "memory.events"}


@dataclass(frozen=True)
class Cgroup:
    """One control group.

    Parameters
    ----------
    version : int
        1 or 2.
    folder : Path
        Where its files stand.
    mount : Path
        The top of what can be seen of its tree.
    """

    version: int
    folder: Path
    mount: Path

    def lineage(self) -> Iterator["Cgroup"]:
        """Yield this group, its parent and so on to the top."""
        folder = self.folder
        while folder.is_relative_to(self.mount):
            yield Cgroup(self.version, folder, self.mount)
            folder = folder.parent

    def limit(self) -> int | None:
        """Return its limit in bytes, or None if it has none."""
        text = _read(self.folder / _LIMIT[self.version]).strip()
        return int(text) if text.isdecimal() and int(text) < UNLIMITED else None

    def usage(self) -> int:
        """Return the bytes charged against it that its processes cannot do without.

        Anonymous memory, files in shared memory, the mapped parts of files and what the kernel
        holds for it; not the rest of the file cache, which the kernel drops before it kills.
        """
        stat = _numbers(self.folder / "memory.stat")
        held = sum(stat.get(key, 0) for key in _HELD[self.version])
        held -= stat.get("slab_reclaimable", 0)
        kernel = _read(self.folder / "memory.kmem.usage_in_bytes").strip()
        held += int(kernel) if kernel.isdecimal() else 0
        # Mapped shared memory was counted twice: never more than all that is charged.
        charged = _read(self.folder / _USAGE[self.version]).strip()
        return min(held, int(charged)) if charged.isdecimal() else held

    def cores(self) -> float | None:
        """Return the processor time that it may use, in cores; None if it has no limit."""
        if self.version == 2:
            quota, _, period = _read(self.folder / "cpu.max").strip().partition(" ")
        else:
            quota = _read(self.folder / "cpu.cfs_quota_us").strip()
            period = _read(self.folder / "cpu.cfs_period_us").strip()
        if not (quota.isdecimal() and period.isdecimal() and int(period)):
            return None  # "max", -1, or not there
        return int(quota) / int(period)

    def kills(self) -> int:
        """Return how many of its processes the kernel has killed for memory."""
        return _numbers(self.folder / _EVENTS[self.version]).get("oom_kill", 0)

    def processes(self) -> list[int]:
        """Return the ids of its processes."""
        return [int(pid) for pid in _read(self.folder / PROCESSES).split()]

    def take(self, pid: int) -> None:
        """Move a process into this group.

        Raises
        ------
        OSError
            If that is not permitted, or the process has ended.
        """
        (self.folder / PROCESSES).write_text(str(pid), encoding="ascii")


def own_cgroups(
    proc: Path = PROC, pid: int | str = "self", controller: str = "memory"
) -> list[Cgroup]:
    """Return the groups that account what a process uses, version 2 first; empty elsewhere.

    A group of version 2 is returned even if it lacks the controller: those above it may have
    limits.

    Parameters
    ----------
    proc : Path
        Where the kernel's ``proc`` is mounted.
    pid : int or str
        The process.
    controller : str
        ``memory`` or ``cpu``, as version 1 calls them.
    """
    mounts = _mounts(proc, controller)
    found = []
    for line in _read(proc / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if controller in controllers.split(",") else 0
        if version not in mounts:
            continue
        root, mount = mounts[version]
        # A path outside of what is mounted is one that this process cannot see.
        if PurePosixPath(path).is_relative_to(root) and ".." not in path:
            below = PurePosixPath(path).relative_to(root)
            found.append(Cgroup(version, mount / below, mount))
    return sorted(found, key=lambda group: -group.version)


def available_cores(proc: Path = PROC) -> int:
    """Return how many cores this process may keep busy; at least 1.

    No more than the machine has, than the process is bound to (``taskset``, a cpuset) and than the
    quotas of its control groups allow (``docker run --cpus``), rounded down.
    """
    cores = os.cpu_count() or 1
    with suppress(AttributeError, OSError):  # another system than Linux
        cores = len(os.sched_getaffinity(0))
    quotas = (
        group.cores() for own in own_cgroups(proc, controller="cpu") for group in own.lineage()
    )
    return max(1, int(min([cores, *(quota for quota in quotas if quota is not None)])))


def _mounts(proc: Path, controller: str) -> dict[int, tuple[str, Path]]:
    """Return the (root, mount point) of each version's tree of groups with a controller."""
    mounts: dict[int, tuple[str, Path]] = {}
    for line in _read(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, *_, options = after.split()
        version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" else 0
        if version == 2 or (version == 1 and controller in options.split(",")):
            mounts.setdefault(version, (root, Path(mount)))
    return mounts


def _numbers(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _read(file: Path) -> str:
    """Return a file's text, empty where there is none: groups come and go."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


#: Seconds that the kernel may take until a group can be removed whose processes have ended.
PATIENCE = 5.0
_CONTROLLERS = "cgroup.subtree_control"
_MAXIMUM = {1: "memory.limit_in_bytes", 2: "memory.max"}
_SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}


@dataclass(frozen=True)
class CgroupLimit:
    """A process in a control group with a memory limit.

    Parameters
    ----------
    group : Cgroup
        Where the process is.
    parent_group : Cgroup
        Where it came from: the group's parent.
    counts_swap : bool
        Whether what is swapped out counts.
    delegated : bool
        Whether ``parent_group`` delegates memory to its children because of this limit (version 2).
    """

    group: Cgroup
    parent_group: Cgroup
    counts_swap: bool = True
    delegated: bool = False

    def leave(self, pid: int) -> None:
        """Move the process back and remove the group.

        Raises
        ------
        MestFedError
            If other processes still run in the group.
        """
        if self.delegated:
            with suppress(OSError):  # one with children of its own keeps it
                (self.parent_group.folder / _CONTROLLERS).write_text("-memory", "ascii")
        with suppress(OSError):  # it has ended
            self.parent_group.take(pid)
        end = time.monotonic() + PATIENCE
        while not self._removed():
            if time.monotonic() > end:
                alive = ", ".join(map(str, self.group.processes())) or "none that can be seen"
                raise MestFedError(f"{self.group.folder} stays; processes in it: {alive}")
            time.sleep(0.02)

    def _removed(self) -> bool:
        try:
            os.rmdir(self.group.folder)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def enter(parent_group: Cgroup, limit: int, pid: int) -> CgroupLimit:
    """Make a group below a process's own, limit it, and move the process into it.

    Parameters
    ----------
    parent_group : Cgroup
        The process's own group.
    limit : int
        Bytes; swap is counted with them (version 1) or not allowed (version 2) where the kernel
        keeps account of it.
    pid : int
        The process.

    Raises
    ------
    OSError
        If that is not permitted, or memory is not delegated to the group.
    """
    if parent_group.version == 2:
        controllers = (parent_group.folder / "cgroup.controllers").read_text("ascii").split()
        if "memory" not in controllers:
            raise PermissionError(f"{parent_group.folder} has no memory controller")
    cgroup_limit = CgroupLimit(_child(parent_group, pid), parent_group)
    try:
        if parent_group.version == 2:
            cgroup_limit = _delegate(cgroup_limit, pid)  # to be undone, too, if what follows fails
        return _limited(cgroup_limit, limit, pid)
    except OSError:
        cgroup_limit.leave(pid)
        raise


def _child(parent_group: Cgroup, pid: int) -> Cgroup:
    for number in count():
        folder = parent_group.folder / f"mest-fed-{pid}-{number}"
        with suppress(FileExistsError):  # of another limit of this process
            os.mkdir(folder)
            return replace(parent_group, folder=folder)
    raise AssertionError("count() has no end")


def _delegate(cgroup_limit: CgroupLimit, pid: int) -> CgroupLimit:
    """Make memory a controller of the group (version 2).

    A group with processes of its own cannot delegate memory to its children. So the process moves
    first; where other processes are in the group, this fails: the group is shared.
    """
    cgroup_limit.group.take(pid)
    switch = cgroup_limit.parent_group.folder / _CONTROLLERS
    if "memory" in switch.read_text("ascii").split():
        return cgroup_limit
    switch.write_text("+memory", "ascii")
    return replace(cgroup_limit, delegated=True)


def _limited(cgroup_limit: CgroupLimit, limit: int, pid: int) -> CgroupLimit:
    version, folder = cgroup_limit.group.version, cgroup_limit.group.folder
    (folder / _MAXIMUM[version]).write_text(str(limit), "ascii")
    swap = folder / _SWAP[version]
    if swap.exists():
        swap.write_text(str(limit if version == 1 else 0), "ascii")
    cgroup_limit.group.take(pid)
    return replace(cgroup_limit, counts_swap=swap.exists())
