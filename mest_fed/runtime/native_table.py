"""The compiled module of the native runtime: its table of operators, and programs as numbers."""

from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from mest_fed.errors import InputError
from mest_fed.runtime.operators import TAKEN
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import ROWS, Buffer, Operator

try:
    from mest_fed.runtime import _native as _compiled

    _module: ModuleType | None = _compiled
except ImportError:  # installed without a compiler
    _module = None

#: Role -> how the buffer is to the groups of a batch; the others are alike to all.
_ROLES = {**dict.fromkeys(ROWS, 1), "sum": 2}
_REAL = 1  # kind of an attribute; see native/mest_runtime.h
_TOGETHER = 2  # planes of an argument: of bfloat16 with the others; more: without them too


class Argument(NamedTuple):
    """An argument of an operator, as the runtime takes it."""

    name: str
    dtype: str
    optional: bool
    planes: bool
    bf16: bool
    converts: bool


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
        raise InputError(
            "mest_fed was installed without its compiled runtime; allowed: a wheel for this "
            "system, or an install where there is a C++ compiler"
        )
    try:
        _module.variant()
    except ValueError as error:
        raise InputError(str(error)) from None
    return _module


@cache
def kinds() -> Mapping[str, Kind]:
    """Return the runtime's table of operators: name -> its line."""
    types = module().types()

    def arguments(details: list[tuple[str, int, bool, int, int]]) -> tuple[Argument, ...]:
        return tuple(
            Argument(name, types[kind], optional, planes > 0, planes > 1, planes > _TOGETHER)
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


def described(
    program: Program, offsets: Mapping[int, int]
) -> tuple[list[int], list[int], list[float], int]:
    """Return a program as the compiled module takes it: buffers, operators, reals, group's count.

    Parameters
    ----------
    program : Program
        What is described.
    offsets : mapping of int to int
        Where in the arena buffers lie, in bytes, by number.

    Raises
    ------
    InputError
        If the module has no such operator or type: one line that says where.
    """
    whole, real = _flat_operators(program.operators)
    return _flat_buffers(program.buffers, offsets), whole, real, program.per_group


def _flat_buffers(buffers: Sequence[Buffer], offsets: Mapping[int, int]) -> list[int]:
    types = {it: code for code, it in enumerate(module().types()) if it in TAKEN}
    numbers: list[int] = []
    for number, buffer in enumerate(buffers):
        if buffer.dtype not in types:
            what = f"{buffer.name!r}: no operator takes {buffer.dtype}"
            raise InputError(f"{what}; allowed: {', '.join(types)}")
        role = _ROLES.get(buffer.role, 0)
        numbers += [types[buffer.dtype], role, offsets.get(number, -1), buffer.margin]
        numbers += [len(buffer.shape), *buffer.shape]
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
