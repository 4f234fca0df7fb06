"""The table of a run's choices, for people to read and for machines to repeat."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mest_fed.catalogue import KernelMode
from mest_fed.errors import InputError, not_allowed
from mest_fed.kernels import native
from mest_fed.kernels.choice import BANDS, CHANNELS, DENSE, IMPLEMENTATIONS, Case, Choice, Choices
from mest_fed.kernels.weight import ConvGeometry
from mest_fed.strict_json import parse_json, read_json

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One case and what was chosen for it.

    Parameters
    ----------
    layers : tuple of str
        Where it occurs; for people alone.
    case : Case
        The case.
    choice : Choice
        What runs.
    milliseconds : dict
        Product -> implementation -> measured time; empty where nothing was timed.
    """

    layers: tuple[str, ...]
    case: Case
    choice: Choice
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The choices of a run, and the machine that made them.

    Parameters
    ----------
    mode : str
        A :class:`~mest_fed.catalogue.KernelMode`: by rule, timed, or dense everywhere.
    rows : tuple of Row
        One for each case.
    variant : str or None
        Instruction set of the compiled kernels where the table was made; None without them.
    threads : int
        torch's, there.
    torch : str
        Its version, there.
    """

    mode: str
    rows: tuple[Row, ...]
    variant: str | None
    threads: int
    torch: str

    @classmethod
    def made_here(cls, mode: str, rows: Iterable[Row]) -> "Table":
        """Return a table that this process made, with its present number of threads."""
        here = (native.variant(), torch.get_num_threads(), str(torch.__version__))
        return cls(mode, tuple(rows), *here)

    @property
    def choices(self) -> Choices:
        """The choices that a process computes with.

        The rule's rows are not named: it decides anew at each density, within a band as well.
        """
        if self.mode != KernelMode.TUNED:
            return Choices(dense=self.mode == KernelMode.DENSE)
        return Choices({row.case: row.choice for row in self.rows})


def choices_to_rows(table: Table) -> dict[str, Any]:
    """Return a table as what JSON can hold."""
    return {
        "format": FORMAT,
        "mode": table.mode,
        "variant": table.variant,
        "threads": table.threads,
        "torch": table.torch,
        "rows": [
            {
                "layers": list(row.layers),
                "case": _case_to_json(row.case),
                "choice": row.choice._asdict(),
                "milliseconds": row.milliseconds,
            }
            for row in table.rows
        ],
    }


def _case_to_json(case: Case) -> dict[str, Any]:
    facts = {"cut": case.storage, "shape": list(case.shape), "size": list(case.size)}
    sides = {name: list(pair) for name, pair in asdict(case.geometry).items()}
    return facts | sides | {"band": case.band, "threads": case.threads}


_CUT = re.compile(r"strips:[1-9][0-9]{0,5}|kernels|channels:(in|out)")


def read_table(path: Path) -> Table:
    """Read a table from a file; see :func:`load_choices`."""
    return load_choices(read_json(path, dict), str(path))


def parse_table(text: str, source: str) -> Table:
    """Read a table from the text of such a file; see :func:`load_choices`."""
    return load_choices(parse_json(text, source, dict), source)


def load_choices(raw: object, source: str) -> Table:
    """Read a table that ``choices_to_rows`` gave, on this machine or another.

    Cases of other machines or numbers of threads are kept; they are never met here.

    Parameters
    ----------
    raw : object
        Parsed JSON.
    source : str
        Where it comes from, for error messages.

    Raises
    ------
    InputError
        If anything is missing, unknown or of a wrong type.
    """
    keys = ("format", "mode", "variant", "threads", "torch", "rows")
    top = _object(raw, source, keys)
    if top["format"] != FORMAT:
        raise not_allowed(f"{source}: format", top["format"], str(FORMAT))
    mode = _one_of(top["mode"], f"{source}: mode", tuple(KernelMode))
    variant, version = top["variant"], top["torch"]
    if variant is not None and not isinstance(variant, str):
        raise not_allowed(f"{source}: variant", variant, "a name, or null")
    if not isinstance(version, str):
        raise not_allowed(f"{source}: torch", version, "a version")
    rows: dict[Case, Row] = {}
    for number, entry in enumerate(_list(top["rows"], f"{source}: rows")):
        row = _row(entry, f"{source}: rows[{number}]")
        if row.case in rows:
            raise InputError(f"{source}: rows[{number}] repeats the case of an earlier row")
        rows[row.case] = row
    threads = _whole(top["threads"], f"{source}: threads", 1)
    return Table(mode, tuple(rows.values()), variant, threads, version)


def _row(raw: object, where: str) -> Row:
    entry = _object(raw, where, ("layers", "case", "choice", "milliseconds"))
    layers = _list(entry["layers"], f"{where}.layers")
    if not all(isinstance(name, str) for name in layers):
        raise not_allowed(f"{where}.layers", layers, "a list of names")
    case = _case(entry["case"], f"{where}.case")
    allowed = _implementations(case)
    chosen = _object(entry["choice"], f"{where}.choice", Choice._fields)
    choice = Choice(
        *(_one_of(chosen[key], f"{where}.choice.{key}", allowed) for key in Choice._fields)
    )
    times = _milliseconds(entry["milliseconds"], f"{where}.milliseconds", allowed)
    return Row(tuple(layers), case, choice, times)


def _implementations(case: Case) -> tuple[str, ...]:
    if case.storage.startswith("channels"):
        return DENSE, CHANNELS
    return tuple(name for name in IMPLEMENTATIONS if name != CHANNELS)


def _case(raw: object, where: str) -> Case:
    keys = ("cut", "shape", "size", "stride", "padding", "dilation", "band", "threads")
    entry = _object(raw, where, keys)
    cut = entry["cut"]
    if not isinstance(cut, str) or not _CUT.fullmatch(cut):
        raise not_allowed(f"{where}.cut", cut, "strips:ROWS, kernels, channels:in, channels:out")
    out, into, height, width = _numbers(entry["shape"], f"{where}.shape", 4)
    sides = [_pair(entry[key], f"{where}.{key}", key != "padding") for key in keys[2:6]]
    size, stride, padding, dilation = sides
    band = entry["band"]
    if isinstance(band, bool) or band not in BANDS:
        raise not_allowed(f"{where}.band", band, BANDS)
    threads = _whole(entry["threads"], f"{where}.threads", 1)
    geometry = ConvGeometry(stride, padding, dilation)
    return Case(cut, (out, into, height, width), size, geometry, float(band), threads)


def _milliseconds(raw: object, where: str, allowed: tuple[str, ...]) -> dict[str, dict[str, float]]:
    if raw == {}:
        return {}
    times = {}
    for product, entry in _object(raw, where, Choice._fields).items():
        if not isinstance(entry, dict):
            raise not_allowed(f"{where}.{product}", entry, "an object of numbers")
        for name, value in entry.items():
            _one_of(name, f"{where}.{product}", allowed)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise not_allowed(f"{where}.{product}.{name}", value, "a number from 0")
        times[product] = {name: float(value) for name, value in entry.items()}
    return times


def _object(raw: object, where: str, keys: Iterable[str]) -> Mapping[str, Any]:
    wanted = list(keys)
    if not isinstance(raw, dict) or set(raw) != set(wanted):
        got = ", ".join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"{where} has {got or 'nothing'}; allowed: {', '.join(wanted)}, no more")
    return raw


def _list(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise not_allowed(where, raw, "a list")
    return raw


def _one_of(raw: object, where: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(raw, str) or raw not in allowed:
        raise not_allowed(where, raw, allowed)
    return raw


def _whole(raw: object, where: str, least: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < least:
        raise not_allowed(where, raw, f"a whole number from {least}")
    return raw


def _numbers(raw: object, where: str, count: int, least: int = 1) -> list[int]:
    numbers = _list(raw, where)
    if len(numbers) != count:
        raise not_allowed(where, numbers, f"{count} whole numbers")
    return [_whole(number, where, least) for number in numbers]


def _pair(raw: object, where: str, positive: bool) -> tuple[int, int]:
    first, second = _numbers(raw, where, 2, 1 if positive else 0)
    return first, second
