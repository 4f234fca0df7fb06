"""Memory of a process and all that it started, sampled at short intervals.

Three sums are told apart. ``pss``: each page divided by the number of processes that map it, which
is less where programs beside the tree map the same libraries. ``alone``: anonymous memory
(proportional) and files as often as their largest user maps them: what the tree takes on a machine
of its own. ``rss`` counts a shared page in each process. All of ``/proc/PID/smaps_rollup``.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sampling import Sampler

from mest_fed.system.proc import process_ids, read_shares, read_sizes, read_stat

#: Seconds between two samples, and between two looks for processes that have started.
INTERVAL, TREE_SECONDS = 0.02, 0.25


@dataclass(frozen=True)
class Memory:
    """A tree of processes at one moment, in bytes.

    Parameters
    ----------
    at : float
        Seconds of ``time.monotonic``.
    pss, alone, rss : int
        As this module says.
    high_water : int
        Sum of the processes' ``VmHWM``: of one process, its peak so far.
    processes : int
        How many there were.
    """

    at: float
    pss: int
    alone: int
    rss: int
    high_water: int
    processes: int


class Meter(Sampler[Memory]):
    """Samples a tree of processes.

    Parameters
    ----------
    pid : int
        The root.
    interval : float
        Seconds from the end of a sample to the beginning of the next.
    """

    def __init__(self, pid: int, interval: float = INTERVAL) -> None:
        super().__init__(interval)
        self._pid = pid
        self._tree: list[int] = []
        self._looked = float("-inf")

    def take(self) -> Memory | None:
        """Look at the tree; None if it has ended."""
        if time.monotonic() >= self._looked + TREE_SECONDS:
            self._tree, self._looked = tree_of(self._pid), time.monotonic()
        return look_at(self._tree)

    def most(self, key: str) -> int:
        """Return the largest value of a sum.

        Raises
        ------
        SystemExit
            If there are no samples.
        """
        if not self.samples:
            raise SystemExit("error: no sample: the process ended, or /proc shows no sizes of it")
        return max(getattr(sample, key) for sample in self.samples)

    @property
    def seconds_between(self) -> float:
        """Mean seconds from a sample to the next."""
        if len(self.samples) < 2:
            return self.interval
        return (self.samples[-1].at - self.samples[0].at) / (len(self.samples) - 1)


def look(root: int) -> Memory | None:
    """Look at a tree once; None if it has ended."""
    return look_at(tree_of(root))


def look_at(tree: Iterable[int]) -> Memory | None:
    """Look at some processes once; None if all have ended."""
    pss = anonymous = files = rss = high_water = count = 0
    for pid in tree:
        shares = read_shares(pid)
        if not shares.get("Rss"):
            continue  # it has ended meanwhile
        count += 1
        pss += shares["Pss"]
        rss += shares["Rss"]
        anonymous += shares["Pss_Anon"] + shares["Pss_Shmem"]
        files = max(files, shares["Rss"] - shares["Anonymous"])
        high_water += read_sizes(pid).get("VmHWM", 0)
    if not count:
        return None
    return Memory(time.monotonic(), pss, anonymous + files, rss, high_water, count)


def tree_of(root: int) -> list[int]:
    """Return the ids of a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid in process_ids():
        stat = read_stat(pid)
        if stat is not None:
            children.setdefault(stat.parent, []).append(pid)
    found = [root]
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    return found


def loads() -> list[float]:
    """Return the load averages of 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def typical(samples: Iterable[Memory], key: str) -> int:
    """Return the median of a sum."""
    values = sorted(getattr(sample, key) for sample in samples)
    return values[len(values) // 2]
