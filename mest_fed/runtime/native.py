"""The native runtime: a program's operators in compiled code, over one arena. Needs NumPy alone."""

from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime.operators import TAKEN
from mest_fed.runtime.planes import elements, size_of
from mest_fed.runtime.program import Buffer, Operator, Program

try:
    from mest_fed.runtime import _native as _compiled

    _module: ModuleType | None = _compiled
except ImportError:  # installed without a compiler
    _module = None

Array = NDArray[Any]

_ALIGNMENT = 64
_REAL = 1  # kind of an attribute; see native/mest_runtime.h


class Argument(NamedTuple):
    """An argument of an operator, as the runtime takes it."""

    name: str
    dtype: str
    optional: bool
    planes: bool


class Attribute(NamedTuple):
    """An attribute: ``length`` numbers, whole or real."""

    name: str
    real: bool
    length: int


class Kind(NamedTuple):
    """A line of the runtime's table of operators."""

    code: int
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    attributes: tuple[Attribute, ...]


def available() -> bool:
    """Say whether the compiled runtime is there."""
    return _module is not None


@cache
def module() -> ModuleType:
    """Return the compiled module.

    Raises
    ------
    InputError
        If mest_fed was installed without it, or the environment's MEST_FED_KERNELS asks for
        kernels that this machine has not.
    """
    if _module is None:
        raise InputError("mest_fed was installed without its compiled runtime")
    try:
        _module.variant()
    except ValueError as error:
        raise InputError(str(error)) from None
    return _module


@cache
def kinds() -> Mapping[str, Kind]:
    """Return the runtime's table of operators: name -> its line."""
    types = module().types()

    def arguments(details: list[tuple[str, int, bool, bool, int]]) -> tuple[Argument, ...]:
        return tuple(
            Argument(name, types[kind], optional, planes)
            for name, kind, optional, planes, _ in details
        )

    return {
        name: Kind(
            code,
            arguments(inputs),
            arguments(outputs),
            tuple(Attribute(it, kind == _REAL, length) for it, kind, _, _, length in attributes),
        )
        for code, (name, inputs, outputs, attributes) in enumerate(module().operators())
    }


class Runtime:
    """A program with memory, ready to run.

    Parameters
    ----------
    program : Program
        What is run. All of it is checked again here.
    offsets : mapping of int to int
        Where in the arena buffers lie, in bytes, by number. The others have memory of their own.
    arena_bytes : int
        Size of the arena.
    threads : int
        Results have the same bits for any number.

    Raises
    ------
    InputError
        If the program is not valid, or memory does not suffice: one line that says where.
    """

    def __init__(
        self, program: Program, offsets: Mapping[int, int], arena_bytes: int, *, threads: int = 1
    ) -> None:
        self._buffers = tuple(program.buffers)
        self._count = len(program.operators)
        self._numbers = {buffer.name: number for number, buffer in enumerate(self._buffers)}
        self._offsets = dict(offsets)
        self._arena = _aligned(arena_bytes)
        self._bound: dict[int, Array] = {}
        whole, real = _flat_operators(program.operators)
        self._program = _checked(
            module().Program,
            _flat_buffers(self._buffers, self._offsets),
            whole,
            real,
            self._arena.ctypes.data,
            arena_bytes,
            threads,
        )
        for number, buffer in enumerate(self._buffers):
            if number not in self._offsets:
                self.bind(number, np.zeros(buffer.shape, buffer.dtype))

    @property
    def workspace_bytes(self) -> int:
        """Bytes that plans and working memory take beside arena and bound buffers (measured)."""
        return int(self._program.workspace_bytes())

    def bind(self, number: int, array: Array) -> None:
        """Let a buffer that is not in the arena be an array's memory, without a copy.

        Raises
        ------
        InputError
            If the array has another shape or type, or may not be written, or is not contiguous.
        """
        buffer = self._buffers[number]
        if array.shape != buffer.shape or array.dtype != np.dtype(buffer.dtype):
            raise InputError(
                f"{buffer.name!r} has shape {array.shape} of {array.dtype}; "
                f"allowed: {buffer.shape} of {buffer.dtype}"
            )
        if not array.flags.carray:
            raise InputError(f"{buffer.name!r} must be contiguous, aligned and not read-only")
        _checked(self._program.bind, number, array.ctypes.data, array.nbytes)
        self._bound[number] = array

    def memory(self, name: str) -> Array:
        """Return a buffer itself, no copy of it: in the arena it holds what was last written there.

        Of planes it is a view of the elements alone; margins stay as they are.

        Raises
        ------
        InputError
            If there is no such buffer.
        """
        if name not in self._numbers:
            raise InputError(f"the program has no buffer {name!r}")
        number = self._numbers[name]
        if number not in self._offsets:
            return self._bound[number]
        buffer = self._buffers[number]
        return elements(self._whole(number), buffer.shape, buffer.margin)

    def write(self, name: str, array: Any) -> None:
        """Copy an array into a buffer.

        Raises
        ------
        InputError
            If there is no such buffer, or its shape is another, or its numbers do not fit the type.
        """
        held, array = self.memory(name), np.asarray(array)
        if held.shape != array.shape:
            raise InputError(f"{name!r} has shape {array.shape}; allowed: {held.shape}")
        whole = np.issubdtype(held.dtype, np.integer)
        if not np.can_cast(array.dtype, held.dtype, "same_kind") or (
            whole and np.any(array.astype(held.dtype) != array)
        ):
            raise InputError(f"{name!r} is given {array.dtype}; allowed: what {held.dtype} holds")
        number = self._numbers[name]
        if self._buffers[number].margin:
            self._whole(number)[...] = 0
        held[...] = array

    def _whole(self, number: int) -> Array:
        """Return the values of a buffer in the arena, margins included."""
        buffer, start = self._buffers[number], self._offsets[number]
        size = size_of(buffer.shape, buffer.margin) * np.dtype(buffer.dtype).itemsize
        return self._arena[start : start + size].view(buffer.dtype)

    def read(self, name: str) -> Array:
        """Return a copy of a buffer."""
        return self.memory(name).copy()

    def run(self, first: int = 0, last: int | None = None) -> None:
        """Run the operators from ``first`` to before ``last``; nothing is allocated.

        Raises
        ------
        InputError
            If slots, targets or indices are out of range.
        """
        _checked(self._program.run, first, self._count if last is None else last)


def _aligned(size: int) -> NDArray[np.uint8]:
    if not 0 <= size <= 2**40:
        raise InputError(f"an arena of {size} bytes; allowed: 0 to {2**40}")
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    skipped = -memory.ctypes.data % _ALIGNMENT
    return memory[skipped : skipped + size]


def _checked(call: Any, *arguments: Any) -> Any:
    """Call the compiled module; what it refuses is an input error."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise InputError(f"the runtime refuses the program: {error}") from None
    except TypeError:  # the binding's own, of several lines
        raise InputError(
            "the program holds a number that is not allowed; allowed: numbers of 64 bits"
        ) from None


def _flat_buffers(buffers: Sequence[Buffer], offsets: Mapping[int, int]) -> list[int]:
    types = {it: code for code, it in enumerate(module().types()) if it in TAKEN}
    numbers: list[int] = []
    for number, buffer in enumerate(buffers):
        if buffer.dtype not in types:
            what = f"{buffer.name!r}: no operator takes {buffer.dtype}"
            raise InputError(f"{what}; allowed: {', '.join(types)}")
        place = offsets.get(number, -1)
        numbers += [types[buffer.dtype], place, buffer.margin, len(buffer.shape), *buffer.shape]
    return numbers


def _flat_operators(operators: Sequence[Operator]) -> tuple[list[int], list[float]]:
    whole: list[int] = []
    real: list[float] = []
    for place, operator in enumerate(operators):
        where = f"operators[{place}]"
        if operator.name not in kinds():
            raise InputError(f"{where}: the runtime has no operator {operator.name!r}")
        kind = kinds()[operator.name]
        where = f"{where} ({operator.name})"
        for side, given in ((kind.inputs, operator.inputs), (kind.outputs, operator.outputs)):
            if len(side) != len(given):
                names = ", ".join(it.name for it in side)
                raise InputError(f"{where}: {len(given)} arguments; allowed: {names}")
        whole += [kind.code, *operator.inputs, *operator.outputs]
        if {it.name for it in kind.attributes} != set(operator.attributes):
            names = ", ".join(it.name for it in kind.attributes) or "none"
            raise InputError(f"{where}: attributes {list(operator.attributes)}; allowed: {names}")
        for attribute in kind.attributes:
            numbers = _numbers(operator.attributes[attribute.name])
            if len(numbers) != attribute.length:
                raise InputError(
                    f"{where}: {attribute.name} = {numbers}; allowed: {attribute.length} numbers"
                )
            if attribute.real:
                real += numbers
            else:
                whole += [int(it) for it in numbers]
    return whole, real


def _numbers(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value]
