"""What the benchmarks share: contestants timed in turn, rows of ours against a peer, their JSON.

A file is ``{"machine", "software", "notices", "rows"}``. A row holds at least ``name``, ``ours``,
``peer``, ``unit``, ``ratio`` and ``runs``: medians of ours and of the peer over that many runs,
and how many times better ours is. All seconds are measured.
"""

import contextlib
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]
#: Runs once. Gives None, or the seconds of its parts where it keeps its own clock.
Contestant = Callable[[], Mapping[str, float] | None]
#: Seconds of a contestant's parts in every run, the whole under "total".
Timings = dict[str, "Timing"]


@dataclass(frozen=True)
class Timing:
    """Seconds of the same work in several runs."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median."""
        return statistics.median(self.runs)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; one run is its own."""
        if len(self.runs) == 1:
            return self.runs[0], self.runs[0]
        first, _, third = statistics.quantiles(self.runs, n=4, method="inclusive")
        return first, third

    @property
    def spread(self) -> float:
        """Inter-quartile range."""
        first, third = self.quartiles
        return third - first


def in_turn(
    contestants: Mapping[str, Contestant],
    repeats: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timings]:
    """Time contestants alternately, so that what disturbs the machine disturbs all of them.

    Every second round runs backwards, so that none always follows the same one. ``total`` is the
    sum of the parts where a contestant gives parts, and the time of its call where it gives None.
    """
    runs: dict[str, dict[str, list[float]]] = {name: {} for name in contestants}
    for number in range(-warm_up, repeats):
        names = list(contestants)
        for name in names if number % 2 == 0 else reversed(names):
            start = clock()
            parts = contestants[name]()
            whole = clock() - start
            parts = {**parts, "total": sum(parts.values())} if parts else {"total": whole}
            if number >= 0:
                for part, seconds in parts.items():
                    runs[name].setdefault(part, []).append(seconds)
    return {
        name: {part: Timing(tuple(seconds)) for part, seconds in parts.items()}
        for name, parts in runs.items()
    }


def compare(name: str, ours: Timings, peer: Timings, **fields: object) -> Row:
    """Return the row of two contestants: milliseconds, quartiles, raw runs, ratios by part."""
    mine, other = ours["total"], peer["total"]
    row: Row = {
        "name": name,
        "ours": _ms(mine.median),
        "peer": _ms(other.median),
        "unit": "ms",
        "ratio": round(other.median / mine.median, 3),
        "runs": len(mine.runs),
        **fields,
    }
    for side, timings in (("ours", ours), ("peer", peer)):
        row[f"{side}_quartiles"] = [_ms(seconds) for seconds in timings["total"].quartiles]
        for part in timings:
            if part != "total":
                row[f"{side}_{part}"] = _ms(timings[part].median)
    for part in ours:
        if part != "total" and part in peer:
            row[f"ratio_{part}"] = round(peer[part].median / ours[part].median, 3)
    for side, timings in (("ours", ours), ("peer", peer)):
        row[f"{side}_runs"] = {
            part: [_ms(seconds) for seconds in timing.runs] for part, timing in timings.items()
        }
    return row


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def machine() -> str:
    """Name this machine's processor and its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def software(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_json(path: Path, rows: Sequence[Row], **fields: object) -> None:
    """Write the machine, further fields and the rows."""
    path.write_text(json.dumps({"machine": machine(), **fields, "rows": rows}, indent=2) + "\n")


def keep_memory() -> None:
    """Let the C library keep what is freed, as a training loop's steady state does.

    Otherwise a benchmark of one layer measures page faults: the C library gives large blocks back
    to the system at once. Both sides gain the same milliseconds. Does nothing beside glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):  # without glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)
