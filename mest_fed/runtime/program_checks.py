"""Which programs are valid: their buffers, their operators, and the order in which these run."""

from collections.abc import Mapping, Sequence
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.kind import Kind
from mest_fed.runtime.operators import OPERATORS, TAKEN
from mest_fed.runtime.planes import MOST_MARGIN
from mest_fed.runtime.program_parts import ABSENT, DTYPES, KEPT, ROLES, Buffer, Operator
from mest_fed.runtime.shapes import Shapes

MOST_BYTES = 2**40
MOST_OPERATORS = 100_000
MOST_BUFFERS = 1_000_000
_MOST_DIMS, _LONGEST_NAME = 8, 200


def check_program(
    buffers: Sequence[Buffer], operators: Sequence[Operator], phases: Sequence[int]
) -> None:
    """Refuse a program that is not valid.

    Parameters
    ----------
    buffers, operators, phases : sequence
        As of :class:`~mest_fed.runtime.program.Program`.

    Raises
    ------
    InputError
        One line that says where and what is allowed.
    """
    if len(operators) > MOST_OPERATORS or len(buffers) > MOST_BUFFERS:
        raise InputError(
            f"a program has at most {MOST_OPERATORS:,} operators and {MOST_BUFFERS:,} buffers"
        )
    for number, buffer in enumerate(buffers):
        _check_buffer(buffer, f"buffers[{number}]")
    if len({buffer.name for buffer in buffers}) < len(buffers):
        raise InputError("buffers: two have one name; allowed: a name of its own for each")
    total = sum(buffer.bytes for buffer in buffers)
    if total > MOST_BYTES:
        raise InputError(f"buffers take {total:,} bytes together; allowed: at most {MOST_BYTES:,}")
    if any(type(count) is not int or count < 0 for count in phases):
        raise not_allowed("phases", phases, "whole numbers of at least 0")
    if sum(phases) != len(operators):
        raise not_allowed("phases", phases, f"numbers whose sum is {len(operators)}")
    _check_order(buffers, operators)


def _check_buffer(buffer: Buffer, where: str) -> None:
    name, shape = buffer.name, buffer.shape
    if not (isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        allowed = f"printable text of at most {_LONGEST_NAME} characters"
        raise InputError(f"{where}.name is not allowed; allowed: {allowed}")
    for key, value, table in (("dtype", buffer.dtype, DTYPES), ("role", buffer.role, ROLES)):
        if not isinstance(value, str) or value not in table:
            raise not_allowed(f"{where}.{key}", value, table)
    if buffer.dtype not in TAKEN:
        allowed = ", ".join(it for it in DTYPES if it in TAKEN)
        raise InputError(f"{where}.dtype: no operator takes {buffer.dtype}; allowed: {allowed}")
    is_shape = isinstance(shape, tuple) and len(shape) <= _MOST_DIMS
    if not is_shape or any(type(n) is not int or not 1 <= n <= MOST_BYTES for n in shape):
        allowed = f"at most {_MOST_DIMS} whole numbers from 1 to {MOST_BYTES:,}"
        raise InputError(f"{where}.shape is not allowed; allowed: {allowed}")
    _check_margin(buffer, where)
    if buffer.bytes > MOST_BYTES:
        raise InputError(f"{where} takes {buffer.bytes:,} bytes; allowed: at most {MOST_BYTES:,}")


def _check_margin(buffer: Buffer, where: str) -> None:
    margin = buffer.margin
    if type(margin) is not int or not 0 <= margin <= MOST_MARGIN:
        raise not_allowed(f"{where}.margin", margin, f"a whole number from 0 to {MOST_MARGIN}")
    floats = buffer.dtype in ("float32", "bfloat16")
    planes = floats and buffer.role == "temporary" and len(buffer.shape) == 4
    if margin and not planes:
        allowed = "0 but for float32 and bfloat16 temporaries of 4 dimensions"
        raise not_allowed(f"{where}.margin", margin, allowed)
    if buffer.dtype == "bfloat16" and not margin:
        raise not_allowed(f"{where}.margin", margin, "1 and more for bfloat16")


def _check_order(buffers: Sequence[Buffer], operators: Sequence[Operator]) -> None:
    """Refuse operators that do not fit their buffers, or run before what they read is there."""
    written = [ROLES[buffer.role] for buffer in buffers]
    untouched = {number for number, buffer in enumerate(buffers) if buffer.role == "sum"}
    for place, operator in enumerate(operators):
        where = f"operators[{place}]"
        try:
            _check_operator(buffers, operator)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for number in operator.reads:
            if not written[number]:
                name = buffers[number].name
                raise InputError(f"{where} ({operator.name}) reads {name!r} before it is written")
        changed = {operator.arguments.get(it) for it in operator.kind.changes}
        for number in operator.writes:
            if written[number] and number not in changed and number not in untouched:
                name = buffers[number].name
                raise InputError(f"{where} ({operator.name}) writes {name!r}, which is written")
            written[number] = True
        untouched.difference_update(operator.reads, operator.writes)
    for number, buffer in enumerate(buffers):
        if buffer.role == "output" and not written[number]:
            raise InputError(f"no operator writes the output {buffer.name!r}")


def _check_operator(buffers: Sequence[Buffer], operator: Operator) -> None:
    """Refuse an operator with the wrong arguments, attributes or shapes."""
    if not isinstance(operator.name, str) or operator.name not in OPERATORS:
        raise not_allowed("name", operator.name, "an operator of mest_fed/runtime/operators.py")
    kind = operator.kind
    for names, numbers in ((kind.inputs, operator.inputs), (kind.outputs, operator.outputs)):
        if len(names) != len(numbers):
            raise InputError(f"{operator.name} has {len(numbers)} arguments; allowed: {names}")
        for name, number in zip(names, numbers, strict=True):
            least = ABSENT if name in kind.optional else 0
            if type(number) is not int or not least <= number < len(buffers):
                allowed = f"a number from {least} to {len(buffers) - 1}"
                raise not_allowed(f"{operator.name}.{name}", number, allowed)
    written = [number for number in operator.outputs if number != ABSENT]
    if len(set(written)) < len(written):
        raise InputError(f"{operator.name} writes a buffer twice")
    given = {name: buffers[number] for name, number in operator.arguments.items()}
    _check_fit(kind, operator.attributes, given)


def _check_fit(kind: Kind, attributes: Mapping[str, Any], given: Mapping[str, Buffer]) -> None:
    """Refuse wrong attributes, and buffers that do not fit them or each other."""
    check_attributes(kind, attributes)
    shapes = Shapes(kind.name, {name: it.shape for name, it in given.items()}, (), attributes)
    kind.rule(shapes)
    for name, buffer in given.items():
        where = f"{kind.name}.{name}"
        if buffer.dtype not in kind.dtypes_of(name):
            raise not_allowed(where, buffer.dtype, kind.dtypes_of(name))
        if buffer.margin and not (name in kind.planes and kind.on_planes(shapes)):
            raise not_allowed(where, f"margin {buffer.margin}", "margin 0")
        if name in kind.changes and name in kind.inputs and buffer.role not in KEPT:
            raise not_allowed(where, buffer.role, KEPT)
    types = {given[it].dtype for it in kind.bf16 if it in given}
    if len(types) > 1 and not kind.converts:
        named = ", ".join(kind.bf16)
        raise not_allowed(f"dtypes of {kind.name}'s {named}", sorted(types), "one for all")


def check_attributes(kind: Kind, attributes: Mapping[str, Any]) -> None:
    """Refuse attributes that are unknown, missing or out of range.

    Raises
    ------
    InputError
        Names the first one.
    """
    for name in (*attributes, *kind.attributes):
        key = f"{kind.name}.{name}"
        if name not in kind.attributes:
            allowed = ", ".join(kind.attributes) or "none"
            raise InputError(f"{kind.name}: {name!r} is no attribute; allowed: {allowed}")
        if name not in attributes:
            raise InputError(f"{key} is missing; allowed: {kind.attributes[name].allowed}")
        if not kind.attributes[name].allows(attributes[name]):
            raise not_allowed(key, attributes[name], kind.attributes[name].allowed)
