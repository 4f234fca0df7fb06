"""Availability from a recorded trace.

A trace is a CSV or a JSON file. Times are seconds from the beginning of the run, numbers from 0.
The trace covers the span from 0 to its greatest ``end``, or to ``span`` in JSON. A device is the
number of a partition, a profile of the fleet (all its devices that have no rows of their own), or
``*`` (all others). Every device of the fleet must be covered.

CSV has the header ``device,start,end`` or ``device,start,end,state``. JSON has an object
``devices``: device -> list of ``[start, end]`` or ``[start, end, state]``, and perhaps ``span``::

    device,start,end           {"span": 86400,
    rpi-4,0,86400               "devices": {"rpi-4": [[0, 86400]], "7": [[79200, 86400]]}}
    7,79200,86400

Without states, rows are the intervals in which the device is there; between them it is away. With
a state, ``on`` or ``off``, in every row, a device's rows must tile the span: the first begins at 0,
each begins where the one before it ends, and the last ends with the span. In both forms a device's
rows may come in any order, and must not overlap.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from mest_fed.errors import InputError
from simulations.life.availability import Interval, Periods
from simulations.life.trace_rows import Row, read_rows

#: Stands for all devices that a trace does not name.
OTHERS = "*"


class Trace(Periods):
    """Availability as recorded; see the module for the format.

    Parameters
    ----------
    devices : sequence of str
        Profile of each partition.
    intervals : mapping of str to sequence of intervals
        Name in the trace -> when such a device is there; within [0, span], in order, apart.
    span : float
        Length of the trace, in seconds.
    repeats : bool
        Whether it begins again at its end; else nobody is there after it.
    """

    limit = 2

    def __init__(
        self,
        devices: Sequence[str],
        intervals: Mapping[str, Sequence[Interval]],
        span: float,
        *,
        repeats: bool = True,
    ) -> None:
        self._devices = devices
        self._intervals = intervals
        self._span = span
        self._repeats = repeats

    def begins(self, device: int, period: int) -> float:
        """Return when a repetition of the trace begins."""
        del device
        return period * self._span

    def period_at(self, device: int, time: float) -> int:
        """Return how many times the trace was over."""
        del device
        return math.floor(time / self._span)

    def intervals(self, device: int, period: int) -> Sequence[Interval]:
        """Return when the device is there."""
        if period and not self._repeats:
            return []
        own = self._intervals.get(str(device))
        if own is None:
            own = self._intervals.get(self._devices[device], self._intervals.get(OTHERS, ()))
        if not period:
            return own
        begin, end = self.begins(device, period), self.begins(device, period + 1)
        moved = [
            (begin + first, end if last == self._span else begin + last) for first, last in own
        ]
        return [(first, last) for first, last in moved if first < last]


def load_trace(path: Path, devices: Sequence[str], *, repeats: bool = True) -> Trace:
    """Read a trace for a fleet.

    Parameters
    ----------
    path : Path
        A file that ends in ``.csv`` or ``.json``.
    devices : sequence of str
        Profile of each partition, as in the fleet's mix.
    repeats : bool
        Whether the trace begins again at its end.

    Raises
    ------
    InputError
        If the file cannot be read, is not in the format, holds no rows, overlaps, or has gaps where
        it has states; if it names a device that the fleet has not, or leaves one out. The message
        is one line and says where.
    """
    rows, span = read_rows(path)
    _check_names(path, {row.device for row in rows}, devices)
    rows = sorted(rows, key=lambda row: (row.device, row.start))
    found: dict[str, list[Interval]] = {}
    for device, group in groupby(rows, key=lambda row: row.device):
        own = list(group)
        _check_order(path, own, span)
        found[device] = _joined([row for row in own if row.on is not False])
    return Trace(devices, found, span, repeats=repeats)


def _check_names(path: Path, names: set[str], devices: Sequence[str]) -> None:
    profiles = set(devices)
    numbers = {name for name in names if name.isdecimal() and name == str(int(name))}
    beyond = [name for name in numbers if int(name) >= len(devices)]
    strangers = sorted(names - profiles - (numbers - set(beyond)) - {OTHERS})
    if strangers:
        raise InputError(
            f"{path}: unknown device {strangers[0]!r}; allowed: 0 to {len(devices) - 1}, "
            f"{', '.join(sorted(profiles))}, or {OTHERS} for all others"
        )
    if OTHERS in names:
        return
    for number, profile in enumerate(devices):
        if profile not in names and str(number) not in numbers:
            raise InputError(
                f"{path}: nothing about device {number} ({profile}); allowed: rows of each device, "
                f"of its profile, or of {OTHERS} for all others"
            )


def _check_order(path: Path, rows: Sequence[Row], span: float) -> None:
    """Refuse overlaps and, where rows have states, gaps."""
    tiles = rows[0].on is not None
    reached = 0.0
    for row in rows:
        if row.start < reached:
            raise InputError(
                f"{path}, {row.where}: {row.interval} of device {row.device} overlaps the one that "
                f"ends at {reached:g}"
            )
        if tiles and row.start > reached:
            raise _gap(path, row.device, reached, row.start)
        reached = row.end
    if tiles and reached < span:
        raise _gap(path, rows[0].device, reached, span)


def _gap(path: Path, device: str, start: float, end: float) -> InputError:
    return InputError(
        f"{path}: device {device} has no state from {start:g} to {end:g}; "
        "rows with states must cover the whole span"
    )


def _joined(rows: Sequence[Row]) -> list[Interval]:
    joined: list[Interval] = []
    for row in rows:
        if joined and joined[-1][1] == row.start:
            joined[-1] = (joined[-1][0], row.end)
        else:
            joined.append((row.start, row.end))
    return joined
