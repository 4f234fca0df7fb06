"""What a program is made of: buffers, which are only described, and operators over them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mest_fed.runtime.kind import Kind
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.planes import size_of
from mest_fed.runtime.shapes import Shape

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
#: Stands for an optional argument that is absent.
ABSENT = -1


@dataclass(frozen=True, slots=True)
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
