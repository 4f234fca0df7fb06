"""Putting a process into a memory control group of its own, and taking it out again."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

from mest_fed.cgroups import Cgroup
from mest_fed.errors import MestFedError

#: Seconds that the kernel may take until a group can be removed whose processes have ended.
PATIENCE = 5.0
_CONTROLLERS = "cgroup.subtree_control"
_MAXIMUM = {1: "memory.limit_in_bytes", 2: "memory.max"}
_SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}


@dataclass(frozen=True)
class Confinement:
    """A process's stay in a group with a limit.

    Parameters
    ----------
    group : Cgroup
        Where the process is.
    home : Cgroup
        Where it came from: the group's parent.
    counts_swap : bool
        Whether what is swapped out counts.
    handed_on : bool
        Whether ``home`` was made to hand memory on to its children (version 2).
    """

    group: Cgroup
    home: Cgroup
    counts_swap: bool = True
    handed_on: bool = False

    def end(self, pid: int) -> None:
        """Move the process back and remove the group.

        Raises
        ------
        MestFedError
            If other processes still live in the group.
        """
        if self.handed_on:
            with suppress(OSError):  # one with children of its own keeps it
                (self.home.folder / _CONTROLLERS).write_text("-memory", "ascii")
        with suppress(OSError):  # it has ended
            self.home.take(pid)
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


def confine(home: Cgroup, limit: int, pid: int) -> Confinement:
    """Make a group below a process's own, limit it, and move the process into it.

    Parameters
    ----------
    home : Cgroup
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
    if home.version == 2:
        controllers = (home.folder / "cgroup.controllers").read_text("ascii").split()
        if "memory" not in controllers:
            raise PermissionError(f"{home.folder} has no memory controller")
    stay = Confinement(_child(home, pid), home)
    try:
        if home.version == 2:
            stay = _hand_on(stay, pid)  # to be undone, too, if what follows fails
        return _limited(stay, limit, pid)
    except OSError:
        stay.end(pid)
        raise


def _child(home: Cgroup, pid: int) -> Cgroup:
    for number in count():
        folder = home.folder / f"mest-fed-{pid}-{number}"
        with suppress(FileExistsError):
            os.mkdir(folder)
            return replace(home, folder=folder)
    raise AssertionError("count() has no end")


def _hand_on(stay: Confinement, pid: int) -> Confinement:
    """Make memory a controller of the group (version 2).

    A group with processes of its own cannot hand memory on to its children. So the process goes
    first, and where others stay behind this fails, as it should: that group is not ours alone.
    """
    stay.group.take(pid)
    switch = stay.home.folder / _CONTROLLERS
    if "memory" in switch.read_text("ascii").split():
        return stay
    switch.write_text("+memory", "ascii")
    return replace(stay, handed_on=True)


def _limited(stay: Confinement, limit: int, pid: int) -> Confinement:
    version, folder = stay.group.version, stay.group.folder
    (folder / _MAXIMUM[version]).write_text(str(limit), "ascii")
    swap = folder / _SWAP[version]
    if swap.exists():
        swap.write_text(str(limit if version == 1 else 0), "ascii")
    stay.group.take(pid)
    return replace(stay, counts_swap=swap.exists())
