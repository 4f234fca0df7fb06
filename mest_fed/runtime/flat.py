"""Programs and arrays as flat binary files, which the C interface reads.

``native/mest_program_file.h`` describes a program's file, word by word. A file of arrays is
little-endian, too:

======  ====================================================================
bytes   what
======  ====================================================================
8       ``MESTDATA``
8       version of the format: 1
8       arrays
...     of each array: a word for its type, one for its dimensions D, one for
        the bytes of its name, D words for its sizes; then its name and its
        values in C order, each followed by zeros up to a multiple of 8 bytes
======  ====================================================================

A type is its place in :data:`~mest_fed.runtime.program_parts.DTYPES`, as in the C interface.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.arena import HELD, plan_arena
from mest_fed.runtime.native_table import described, kinds
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import DTYPES, ROLES
from mest_fed.runtime.step import facts_of

Array = NDArray[Any]

PROGRAM_MAGIC, ARRAYS_MAGIC, VERSION = b"MESTPROG", b"MESTDATA", 1
_WORD = 8
_TYPES = tuple(DTYPES)
_MOST_ARRAYS, _MOST_DIMS, _LONGEST_NAME = 1_000_000, 8, 800


def flat_program(program: Program) -> bytes:
    """Return a whole step as a file.

    Parameters
    ----------
    program : Program
        A step as :class:`~mest_fed.runtime.step.CompiledStep` takes it.

    Raises
    ------
    InputError
        If it is none, or it draws numbers: the file says nothing of a generator.
    """
    facts = facts_of(program)
    if facts.seeds:
        raise InputError(f"the program draws {facts.seeds}; allowed: in a file none that drops")
    numbers = [program.numbers[name] for name in facts[:5]]
    arena = plan_arena(program)
    whole, operators, reals, per_group = described(program, arena.offsets)
    del whole  # its roles are fewer than a file's
    table = kinds()
    used = sorted({it.name for it in program.operators})
    places = {table[name].code: place for place, name in enumerate(used)}
    buffers = _buffers(program, arena.offsets)
    flat_kinds: list[int] = []
    for name in used:
        kind = table[name]
        lengths = [sum(it.length for it in kind.attributes if it.real == real) for real in (0, 1)]
        flat_kinds += [len(kind.inputs), len(kind.outputs), *lengths]
    names = [*used, *(it.name for it in program.buffers)]
    text = _padded(b"".join(it.encode() + b"\0" for it in names))
    words = [
        *(arena.peak, per_group, program.examples, int(program.takes_groups), *numbers),
        *(len(used), len(program.buffers), len(buffers), len(operators), len(reals), len(text)),
        *(*flat_kinds, *buffers, *_renumbered(program, operators, places)),
    ]
    checked = np.array(words, "<i8").tobytes() + np.array(reals, "<f8").tobytes() + text
    return PROGRAM_MAGIC + struct.pack("<qQ", VERSION, fnv(checked)) + checked


def _buffers(program: Program, offsets: Mapping[int, int]) -> list[int]:
    roles = tuple(ROLES)
    numbers: list[int] = []
    for number, it in enumerate(program.buffers):
        offset = offsets.get(number, -1) if it.role in HELD else -1
        numbers += [_TYPES.index(it.dtype), roles.index(it.role), offset, it.margin]
        numbers += [len(it.shape), *it.shape]
    return numbers


def _renumbered(program: Program, operators: list[int], places: Mapping[int, int]) -> list[int]:
    """Return the operators with a file's numbers of kinds instead of the runtime's."""
    table, found, at = kinds(), list(operators), 0
    for operator in program.operators:
        kind = table[operator.name]
        found[at] = places[kind.code]
        wholes = sum(it.length for it in kind.attributes if not it.real)
        at += 1 + len(kind.inputs) + len(kind.outputs) + wholes
    return found


def fnv(data: bytes) -> int:
    """Return the check of a file: FNV-1a of 64 bits."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays into a file.

    Raises
    ------
    InputError
        If a type or a name is not allowed.
    """
    with path.open("wb") as file:
        file.write(ARRAYS_MAGIC + struct.pack("<qq", VERSION, len(arrays)))
        for name, given in arrays.items():
            array = np.asarray(given, order="C")
            if array.dtype.name not in _TYPES:
                raise not_allowed(f"type of {name!r}", array.dtype.name, _TYPES)
            text = name.encode()
            if not 0 < len(text) <= _LONGEST_NAME or b"\0" in text or array.ndim > _MOST_DIMS:
                raise InputError(f"{name!r} is no name or has too many dimensions")
            words = [_TYPES.index(array.dtype.name), array.ndim, len(text), *array.shape]
            file.write(np.array(words, "<i8").tobytes() + _padded(text))
            file.write(_padded(array.astype(array.dtype.newbyteorder("<")).tobytes()))


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a file.

    Raises
    ------
    InputError
        If it cannot be read, is no such file, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if data[:_WORD] != ARRAYS_MAGIC:
        raise InputError(f"{path} is no file of arrays; allowed: one that begins with MESTDATA")
    try:
        return _read_arrays(data)
    except (ValueError, struct.error, UnicodeDecodeError):
        raise InputError(f"{path} is damaged") from None


def _read_arrays(data: bytes) -> dict[str, Array]:
    found: dict[str, Array] = {}
    at = _WORD

    def words(count: int) -> tuple[int, ...]:
        nonlocal at
        numbers = struct.unpack_from(f"<{count}q", data, at)
        at += _WORD * count
        return numbers

    def part(length: int) -> bytes:
        nonlocal at
        if not 0 <= length <= len(data) - at:
            raise ValueError
        piece = data[at : at + length]
        at += -(-length // _WORD) * _WORD
        return piece

    version, count = words(2)
    if version != VERSION or not 0 <= count <= _MOST_ARRAYS:
        raise ValueError
    for _ in range(count):
        kind, dims, length = words(3)
        if not (0 <= kind < len(_TYPES) and 0 <= dims <= _MOST_DIMS):
            raise ValueError
        if not 0 < length <= _LONGEST_NAME or _TYPES[kind] == "bfloat16":
            raise ValueError
        shape, name = words(dims), part(length).decode()
        if any(size < 0 for size in shape) or name in found:
            raise ValueError
        size = DTYPES[_TYPES[kind]]
        for each in shape:
            size *= each
        dtype = np.dtype(_TYPES[kind]).newbyteorder("<")
        found[name] = (
            np.frombuffer(part(size), dtype).reshape(shape).astype(dtype.newbyteorder("="))
        )
    return found


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _WORD)
