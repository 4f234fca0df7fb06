"""Programs from outside: JSON, in which everything is checked before anything is made of it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.program import FORMAT, PHASES, VERSION, Program
from mest_fed.runtime.program_checks import MOST_BUFFERS, MOST_OPERATORS
from mest_fed.runtime.program_parts import Buffer, Operator
from mest_fed.strict_json import parse_json

#: Bytes of a text that is read at all.
MOST_TEXT = 2**26


def read_program(path: Path) -> Program:
    """Read a program from a file; see :func:`parse_program`."""
    try:
        if path.stat().st_size > MOST_TEXT:
            raise _too_long(str(path))
        return parse_program(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_program(text: str | bytes, source: str = "program") -> Program:
    """Read a program.

    Parameters
    ----------
    text : str or bytes
        JSON, from anywhere.
    source : str
        Where it comes from, for errors.

    Raises
    ------
    InputError
        If it is not a valid program: one line that begins with ``source``.
    """
    if len(text) > MOST_TEXT:
        raise _too_long(source)
    table = parse_json(text, source, dict)
    try:
        return _from_table(table)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _too_long(source: str) -> InputError:
    return InputError(f"{source}: more than {MOST_TEXT >> 20} MiB of program are not read")


def _from_table(table: dict[str, Any]) -> Program:
    """Build a program of plain values of any kind."""
    _keys(table, "program", ("format", "version", "buffers", "operators", "phases"))
    if table["format"] != FORMAT:
        raise not_allowed("format", table["format"], FORMAT)
    if type(table["version"]) is not int or table["version"] != VERSION:
        raise not_allowed("version", table["version"], str(VERSION))
    for key, most in (("buffers", MOST_BUFFERS), ("operators", MOST_OPERATORS)):
        if not isinstance(table[key], list) or len(table[key]) > most:
            raise InputError(f"{key} must be a list of at most {most:,}")
    buffers = [_buffer(it, f"buffers[{i}]") for i, it in enumerate(table["buffers"])]
    operators = [_operator(it, f"operators[{i}]") for i, it in enumerate(table["operators"])]
    _keys(table["phases"], "phases", PHASES)
    forward, backward, update = (table["phases"][name] for name in PHASES)
    return Program(tuple(buffers), tuple(operators), (forward, backward, update))


def _keys(table: Any, where: str, names: Sequence[str]) -> None:
    if not isinstance(table, dict) or set(table) != set(names):
        raise InputError(f"{where} must be an object with the keys {', '.join(names)}")


def _buffer(table: Any, where: str) -> Buffer:
    _keys(table, where, ("name", "shape", "dtype", "role", "margin"))
    shape = table["shape"]
    return Buffer(
        table["name"],
        tuple(shape) if isinstance(shape, list) else shape,
        _once(table["dtype"]),
        _once(table["role"]),
        table["margin"],
    )


def _operator(table: Any, where: str) -> Operator:
    _keys(table, where, ("name", "inputs", "outputs", "attributes"))
    if not isinstance(table["attributes"], dict):
        raise InputError(f"{where}.attributes must be an object")
    if not isinstance(table["inputs"], list) or not isinstance(table["outputs"], list):
        raise InputError(f"{where}: inputs and outputs must be lists of numbers of buffers")
    attributes = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in table["attributes"].items()
    }
    return Operator(
        _once(table["name"]), tuple(table["inputs"]), tuple(table["outputs"]), attributes
    )


def _once(word: Any) -> Any:
    """Return a word that many parts have, which stands in memory once then."""
    return sys.intern(word) if type(word) is str else word
