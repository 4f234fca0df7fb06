"""Folders that look like the kernel's control groups and, as far as tests need it, behave so."""

import os
import shutil
from pathlib import Path

UNLIMITED_1 = "9223372036854771712\n"
STATUS = "Name:\tpython\nVmSize:\t  900000 kB\nVmRSS:\t  100000 kB\n"
LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax address space  {}  unlimited  bytes\n"


class Machine:
    """A fake ``/proc`` and ``/sys/fs/cgroup``; this process is number 42.

    Parameters
    ----------
    folder : Path
        An empty folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.proc = folder / "proc"
        self.mounts, self.groups = [], []
        for pid in ("self", "42"):
            (self.proc / pid).mkdir(parents=True)
        self.status()

    def status(self, address_space="unlimited"):
        for pid in ("self", "42"):
            (self.proc / pid / "status").write_text(STATUS)
            (self.proc / pid / "limits").write_text(LIMITS.format(address_space))

    def mount(self, version, name, path, root="/", controller="memory"):
        """Mount a tree, put the process below it, and return (its top, its own group)."""
        top = self.folder / name
        own = top / Path(path).relative_to(root)
        own.mkdir(parents=True)
        kind = "cgroup2 cgroup2 rw" if version == 2 else f"cgroup cgroup rw,{controller}"
        self.mounts.append(f"35 31 0:32 {root} {top} rw,relatime shared:9 - {kind}")
        self.groups.append(f"0::{path}" if version == 2 else f"4:{controller}:{path}")
        self.groups.append("3:cpuset:/elsewhere")
        (self.proc / "self" / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        for pid in ("self", "42"):
            (self.proc / pid / "cgroup").write_text("\n".join(self.groups) + "\n")
        return top, own


def fill(group, **files):
    """Write a group's files; a double underscore stands for a dot."""
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(str(text))


class GroupCalls:
    """What stands for ``os``: a new group has files, and a group goes together with them."""

    rmdir = staticmethod(shutil.rmtree)

    @staticmethod
    def cpu_count():
        return os.cpu_count()

    @staticmethod
    def sched_getaffinity(pid):
        return os.sched_getaffinity(pid)

    @staticmethod
    def mkdir(folder):
        os.mkdir(folder)
        home = Path(folder).parent
        version = 2 if (home / "cgroup.controllers").exists() else 1
        swap = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}[version]
        if not (home / "no_swap").exists():
            (Path(folder) / swap).write_text("")
