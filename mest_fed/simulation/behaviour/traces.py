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

import csv
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from mest_fed.errors import InputError
from mest_fed.simulation.behaviour.availability import Interval, Periods
from mest_fed.strict_json import parse_json

_HEADERS = (["device", "start", "end"], ["device", "start", "end", "state"])
_STATES = {"on": True, "off": False}


@dataclass(frozen=True)
class Row:
    """One row.

    Parameters
    ----------
    where : str
        Its place in the file, for messages.
    device : str
        As the file names it.
    start, end : float
        Seconds; 0 <= start < end.
    on : bool or None
        Its state, or None in a trace without states.
    """

    where: str
    device: str
    start: float
    end: float
    on: bool | None = None

    @property
    def interval(self) -> str:
        """The interval as text."""
        return f"[{self.start:g}, {self.end:g})"


def read_rows(path: Path) -> tuple[list[Row], float]:
    """Read a trace file; return its rows and its span in seconds.

    Raises
    ------
    InputError
        If it cannot be read, holds no rows, or a row is wrong.
    """
    if path.suffix not in (".csv", ".json"):
        raise InputError(f"{path} is not a trace; allowed: a file that ends in .csv or .json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    rows, span = (_csv if path.suffix == ".csv" else _json)(path, text)
    if not rows:
        raise InputError(f"{path} holds no intervals")
    longest = max(rows, key=lambda row: row.end)
    if span is not None and longest.end > span:
        raise InputError(f"{path}, {longest.where}: {longest.interval} ends after span = {span:g}")
    return rows, longest.end if span is None else span


def _csv(path: Path, text: str) -> tuple[list[Row], None]:
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    if not lines:
        return [], None
    (_, header), *body = lines
    if header not in _HEADERS:
        allowed = " or ".join(",".join(columns) for columns in _HEADERS)
        raise InputError(f"{path}: header {','.join(header)!r} is not allowed; allowed: {allowed}")
    return [_csv_row(path, number, cells, len(header)) for number, cells in body], None


def _csv_row(path: Path, number: int, cells: Sequence[str], width: int) -> Row:
    where = f"line {number}"
    if len(cells) != width:
        raise InputError(f"{path}, {where}: {len(cells)} columns; allowed: {width}")
    times = [_number(cell) for cell in cells[1:3]]
    return _row(path, where, cells[0], [*times, *cells[3:]], cells[1:])


def _number(cell: str) -> float | None:
    """Return the number of a cell, or None, which the row's check refuses."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _json(path: Path, text: str) -> tuple[list[Row], float | None]:
    table = parse_json(text, str(path), dict)
    if not isinstance(table.get("devices"), dict):
        raise InputError(f"{path}: allowed: an object with devices, and perhaps span")
    if unknown := table.keys() - {"devices", "span"}:
        raise InputError(f"{path}: unknown key {min(unknown)!r}; allowed: devices, span")
    span = table.get("span")
    if span is not None and not (_is_time(span) and span > 0):
        raise InputError(f"{path}: span = {span!r} is not allowed; allowed: a positive number")
    rows = list(_json_rows(path, table["devices"]))
    if len({row.on is None for row in rows}) > 1:
        raise InputError(f"{path}: some rows have states and some have none; allowed: all or none")
    return rows, None if span is None else float(span)


def _json_rows(path: Path, devices: dict[str, Any]) -> Iterable[Row]:
    for device, rows in devices.items():
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{path}: device {device}: allowed: a list of at least one interval")
        for number, row in enumerate(rows, 1):
            where = f"device {device}, interval {number}"
            if not isinstance(row, list) or len(row) not in (2, 3):
                raise InputError(f"{path}, {where}: allowed: [start, end] or [start, end, state]")
            yield _row(path, where, device, row, row)


def _row(path: Path, where: str, device: str, cells: Sequence[Any], shown: Sequence[Any]) -> Row:
    start, end, *state = cells
    if not (_is_time(start) and _is_time(end) and start < end):
        text = f"from {shown[0]!r} to {shown[1]!r}"
        raise InputError(
            f"{path}, {where}: {text} is not allowed; allowed: two numbers, 0 <= start < end"
        )
    if state and state[0] not in tuple(_STATES):
        raise InputError(f"{path}, {where}: state {state[0]!r} is not allowed; allowed: on, off")
    on = _STATES[state[0]] if state else None
    return Row(where, device, float(start), float(end), on)


def _is_time(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max


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
        Whether it begins again at its end; else no device is available after it.
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


def recorded(trace: Trace) -> Trace:
    """Return the run's trace: devices are there as it says."""
    return trace


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
    unknown = sorted(names - profiles - (numbers - set(beyond)) - {OTHERS})
    if unknown:
        raise InputError(
            f"{path}: unknown device {unknown[0]!r}; allowed: 0 to {len(devices) - 1}, "
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
