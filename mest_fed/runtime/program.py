"""A program: operators over numbered buffers, and their JSON (``reading.py`` reads it).

A program that exists is valid: the constructor of :class:`Program` refuses any other. Buffers are
only described; nothing of their size is allocated here.

A program is written for a group of examples. Forward and backward run once for each group of a
batch, the update once for the batch. What passes from groups to the update is a ``sum``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.kind import Kind
from mest_fed.runtime.operators import OPERATORS, TAKEN
from mest_fed.runtime.planes import MOST_MARGIN, size_of
from mest_fed.runtime.shapes import Shape, Shapes

FORMAT, VERSION = "mest-fed program", 2
#: dtype -> bytes of one value.
DTYPES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}
#: Role -> whether the buffer holds something before the first operator. An ``input`` and an
#: ``output`` are a group's part of a larger array, the examples first; a ``setting`` is a number
#: of the step; a ``sum`` is zero at first, and added up over the groups of a batch.
ROLES = {
    "input": True,
    "setting": True,
    "parameter": True,
    "state": True,
    "output": False,
    "sum": True,
    "temporary": False,
}
#: Roles of buffers that hold a part for each group.
ROWS = ("input", "output")
#: Roles of buffers that operators may update in place.
KEPT = ("parameter", "state")
PHASES = ("forward", "backward", "update")
#: Stands for an optional argument that is absent.
ABSENT = -1

MOST_BYTES = 2**40
MOST_OPERATORS = 100_000
MOST_BUFFERS = 1_000_000
_MOST_DIMS, _LONGEST_NAME = 8, 200


@dataclass(frozen=True)
class Buffer:
    """One buffer.

    Parameters
    ----------
    name : str
        Unique in the program.
    shape : tuple of int
        () for a single value.
    dtype, role : str
        A name of :data:`DTYPES`, and of :data:`ROLES`.
    margin : int
        Rows of zeros between the channels of planes; 0 for C order. See ``planes.py``.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    role: str = "temporary"
    margin: int = 0

    @property
    def bytes(self) -> int:
        """Size in bytes, margins included."""
        return size_of(self.shape, self.margin) * DTYPES[self.dtype]


@dataclass(frozen=True)
class Operator:
    """One operator: numbers of buffers, by the order of its signature.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.runtime.operators.OPERATORS`.
    inputs, outputs : tuple of int
        Numbers of buffers; -1 for an optional one that is absent.
    attributes : mapping
        A value for each attribute of the operator; lists are tuples.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Its line of the table."""
        return OPERATORS[self.name]

    @cached_property
    def arguments(self) -> Mapping[str, int]:
        """Number of the buffer of each argument that is present."""
        names = (*self.kind.inputs, *self.kind.outputs)
        numbers = zip(names, (*self.inputs, *self.outputs), strict=True)
        return {name: number for name, number in numbers if number != ABSENT}

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Buffers that it reads, those that it changes included."""
        changed = [self.arguments[it] for it in self.kind.changes if it in self.arguments]
        return tuple(dict.fromkeys((*(it for it in self.inputs if it != ABSENT), *changed)))

    @cached_property
    def writes(self) -> tuple[int, ...]:
        """Buffers that it writes, those that it changes included."""
        changed = [self.arguments[it] for it in self.kind.changes if it in self.arguments]
        return tuple(dict.fromkeys((*(it for it in self.outputs if it != ABSENT), *changed)))


@dataclass(frozen=True)
class Program:
    """Operators over numbered buffers.

    Parameters
    ----------
    buffers : tuple of Buffer
        A buffer's number is its place.
    operators : tuple of Operator
        In the order in which they run.
    phases : tuple of int
        How many of them are forward, backward and update.

    Raises
    ------
    InputError
        If the program is not valid: one line that says where and what is allowed.
    """

    buffers: tuple[Buffer, ...]
    operators: tuple[Operator, ...]
    phases: tuple[int, int, int]

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def unchecked(
        cls,
        buffers: tuple[Buffer, ...],
        operators: tuple[Operator, ...],
        phases: tuple[int, int, int],
    ) -> "Program":
        """Return a program that is not checked yet: one between passes, whose end is checked.

        Checks take longer than passes do.
        """
        program = object.__new__(cls)
        vars(program).update(buffers=buffers, operators=operators, phases=phases)
        return program

    def checked(self) -> "Program":
        """Return the program if it is valid, as one that is made anew."""
        return Program(self.buffers, self.operators, self.phases)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each buffer by its name."""
        return {buffer.name: number for number, buffer in enumerate(self.buffers)}

    def of_role(self, *roles: str) -> list[int]:
        """Return the numbers of the buffers of some roles."""
        return [number for number, it in enumerate(self.buffers) if it.role in roles]

    @property
    def per_group(self) -> int:
        """How many operators run once a group: those of forward and backward."""
        return self.phases[0] + self.phases[1]

    @cached_property
    def takes_groups(self) -> bool:
        """Whether a batch may be several groups; else it is one (batch norm).

        It may where operators of groups change nothing but sums, by adding to them, the update
        reads nothing else of them, and only what is of examples is dropped: what is not would be
        dropped anew in each group.
        """
        sums, kept, rows = (set(self.of_role(*it)) for it in (("sum",), KEPT, ROWS))
        made = set(rows)
        of_examples = set(self.of_role("input"))
        for operator in self.operators[: self.per_group]:
            if of_examples.intersection(operator.inputs):
                of_examples.update(operator.outputs)
            elif "seed" in operator.arguments:
                return False
            changes, arguments = operator.kind.changes, operator.arguments
            added = {arguments[it] for it in operator.kind.outputs if it in changes}
            touched = sums.intersection((*operator.inputs, *operator.outputs)) - added
            if touched or kept.intersection(operator.writes):
                return False
            made.update(operator.writes)
        made -= sums
        later = self.operators[self.per_group :]
        return not any(made.intersection((*it.reads, *it.writes)) for it in later)

    @cached_property
    def examples(self) -> int:
        """Examples of a group: the first dimension of all inputs and outputs.

        Raises
        ------
        InputError
            If they have not one such dimension.
        """
        found = {self.buffers[it].shape[:1] for it in self.of_role(*ROWS)}
        if len(found) != 1 or () in found:
            allowed = "one for all, the examples of a group"
            raise not_allowed("first dimensions of inputs and outputs", sorted(found), allowed)
        return found.pop()[0]

    def shapes(self, operator: Operator) -> Shapes:
        """Return the shapes of an operator's arguments."""
        known = {name: self.buffers[it].shape for name, it in operator.arguments.items()}
        return Shapes(operator.name, known, (), operator.attributes)

    def work(self, operator: Operator) -> int:
        """Return an operator's multiply-adds (modelled); 0 for what is bound by its bytes."""
        return operator.kind.work(self.shapes(operator))

    def traffic(self, operator: Operator) -> int:
        """Return the bytes that an operator reads and writes, each buffer once (modelled)."""
        if operator.kind.is_view:
            return 0
        both = (*operator.reads, *operator.writes)
        return sum(self.buffers[number].bytes for number in both)

    def as_table(self) -> dict[str, Any]:
        """Return the program as plain values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "buffers": [{**vars(it), "shape": list(it.shape)} for it in self.buffers],
            "operators": [
                {
                    "name": it.name,
                    "inputs": list(it.inputs),
                    "outputs": list(it.outputs),
                    "attributes": {
                        key: list(value) if isinstance(value, tuple) else value
                        for key, value in it.attributes.items()
                    },
                }
                for it in self.operators
            ],
            "phases": dict(zip(PHASES, self.phases, strict=True)),
        }

    def to_json(self) -> str:
        """Return the program as JSON: one text for one program."""
        return json.dumps(self.as_table(), sort_keys=True, separators=(",", ":"))

    @cached_property
    def sha256(self) -> str:
        """Digest of :meth:`to_json`, hexadecimal."""
        import hashlib  # takes megabytes (OpenSSL) that training does without

        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _check(program: Program) -> None:
    """Refuse a program that is not valid."""
    if len(program.operators) > MOST_OPERATORS or len(program.buffers) > MOST_BUFFERS:
        raise InputError(
            f"a program has at most {MOST_OPERATORS:,} operators and {MOST_BUFFERS:,} buffers"
        )
    for number, buffer in enumerate(program.buffers):
        _check_buffer(buffer, f"buffers[{number}]")
    if len(program.numbers) < len(program.buffers):
        raise InputError("buffers: two have one name; allowed: a name of its own for each")
    total = sum(buffer.bytes for buffer in program.buffers)
    if total > MOST_BYTES:
        raise InputError(f"buffers take {total:,} bytes together; allowed: at most {MOST_BYTES:,}")
    phases = program.phases
    if any(type(count) is not int or count < 0 for count in phases):
        raise not_allowed("phases", phases, "whole numbers of at least 0")
    if sum(phases) != len(program.operators):
        raise not_allowed("phases", phases, f"numbers whose sum is {len(program.operators)}")
    _check_order(program)


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


def _check_order(program: Program) -> None:
    """Refuse operators that do not fit their buffers, or run before what they read is there."""
    written = [ROLES[buffer.role] for buffer in program.buffers]
    untouched = set(program.of_role("sum"))
    for place, operator in enumerate(program.operators):
        where = f"operators[{place}]"
        try:
            _check_operator(program, operator)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for number in operator.reads:
            if not written[number]:
                name = program.buffers[number].name
                raise InputError(f"{where} ({operator.name}) reads {name!r} before it is written")
        changed = {operator.arguments.get(it) for it in operator.kind.changes}
        for number in operator.writes:
            if written[number] and number not in changed and number not in untouched:
                name = program.buffers[number].name
                raise InputError(f"{where} ({operator.name}) writes {name!r}, which is written")
            written[number] = True
        untouched.difference_update(operator.reads, operator.writes)
    for number, buffer in enumerate(program.buffers):
        if buffer.role == "output" and not written[number]:
            raise InputError(f"no operator writes the output {buffer.name!r}")


def _check_operator(program: Program, operator: Operator) -> None:
    """Refuse an operator with the wrong arguments, attributes or shapes."""
    if not isinstance(operator.name, str) or operator.name not in OPERATORS:
        raise not_allowed("name", operator.name, "an operator of mest_fed/runtime/operators.py")
    kind = operator.kind
    for names, numbers in ((kind.inputs, operator.inputs), (kind.outputs, operator.outputs)):
        if len(names) != len(numbers):
            raise InputError(f"{operator.name} has {len(numbers)} arguments; allowed: {names}")
        for name, number in zip(names, numbers, strict=True):
            least = ABSENT if name in kind.optional else 0
            if type(number) is not int or not least <= number < len(program.buffers):
                allowed = f"a number from {least} to {len(program.buffers) - 1}"
                raise not_allowed(f"{operator.name}.{name}", number, allowed)
    written = [number for number in operator.outputs if number != ABSENT]
    if len(set(written)) < len(written):
        raise InputError(f"{operator.name} writes a buffer twice")
    given = {name: program.buffers[number] for name, number in operator.arguments.items()}
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
