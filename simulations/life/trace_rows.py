"""The rows of a trace file, each checked by itself."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mest_fed.errors import InputError

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
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _json(path: Path, text: str) -> tuple[list[Row], float | None]:
    try:
        table = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(table, dict) or not isinstance(table.get("devices"), dict):
        raise InputError(f"{path}: allowed: an object with devices, and perhaps span")
    if strangers := table.keys() - {"devices", "span"}:
        raise InputError(f"{path}: unknown key {min(strangers)!r}; allowed: devices, span")
    span = table.get("span")
    if span is not None and not (_is_time(span) and span > 0):
        raise InputError(f"{path}: span = {span!r} is not allowed; allowed: a positive number")
    rows = list(_json_rows(path, table["devices"]))
    if len({row.on is None for row in rows}) > 1:
        raise InputError(f"{path}: some rows have states and some have none; allowed: all or none")
    return rows, None if span is None else float(span)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return table


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
