"""What the table says of an operator: its signature, attributes, shapes, and what it may share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mest_fed.runtime.shapes import Shapes

#: dtype of the arguments that are not float32.
_DTYPES = {
    "slots": "int32",
    "indices": "int64",
    "targets": "int64",
    "seed": "int64",
    "step": "int64",
    "where": "uint8",
    "kept": "uint8",
}


@dataclass(frozen=True)
class Attribute:
    """What an attribute may be.

    Parameters
    ----------
    kind : type
        ``int``, ``float`` or ``bool``.
    least, most : float
        Bounds, inclusive.
    length : int
        Numbers of a list; 0 for a single one.
    """

    kind: type
    least: float = 0
    most: float = 2**31 - 1
    length: int = 0

    def allows(self, value: object) -> bool:
        """Say whether a value is allowed."""
        if self.length == 0:
            return type(value) is self.kind and self.least <= value <= self.most  # type: ignore[operator]
        return (
            isinstance(value, tuple)
            and len(value) == self.length
            and all(type(it) is self.kind and self.least <= it <= self.most for it in value)  # type: ignore[operator]
        )

    @property
    def allowed(self) -> str:
        """What is allowed, as a phrase."""
        if self.kind is bool:
            return "true or false"
        numbers = "whole numbers" if self.kind is int else "numbers with a point"
        count = f"{self.length} {numbers}" if self.length else numbers.replace("numbers", "number")
        return f"{count} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Kind:
    """One line of the table.

    Parameters
    ----------
    signature : str
        ``name(inputs) -> outputs``.
    attributes : mapping of str to Attribute
        All of them must be given.
    rule : callable
        Compares the shapes of all arguments, and gives those of outputs. Where it cannot give one
        (the input of a strided convolution), that must be given.
    shares : sequence of (str, str)
        An output and an input whose memory it may be written to, element by element.
    changes : tuple of str
        Inputs that are updated in place, and outputs that are added to.
    is_view : bool
        Whether the output holds the input's bytes, so that both may be one as long as neither
        is changed.
    work : callable
        Multiply-adds of a product, from its shapes; 0 for what is bound by its bytes.
    dtypes : mapping of str to str
        Type of arguments that have another one in this operator than in others.
    planes : tuple of str
        Arguments that may have margins (``planes.py``), each with its own. The others are in C
        order.
    on_planes : callable
        Whether that holds for these shapes and attributes.
    bf16 : tuple of str
        Arguments that may be bfloat16 where they have margins: all of them that are present, or
        none. The operator computes in float32.
    converts : bool
        Whether each of them may be so without the others.
    """

    signature: str
    attributes: Mapping[str, Attribute]
    rule: Callable[[Shapes], None]
    shares: tuple[tuple[str, str], ...] = ()
    changes: tuple[str, ...] = ()
    is_view: bool = False
    work: Callable[[Shapes], int] = field(default=lambda _: 0)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    planes: tuple[str, ...] = ()
    on_planes: Callable[[Shapes], bool] = field(default=lambda _: True)
    bf16: tuple[str, ...] = ()
    converts: bool = False

    @cached_property
    def name(self) -> str:
        """Name of the operator."""
        return self.signature.partition("(")[0]

    @cached_property
    def _sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        given, _, made = self.signature.partition("(")[2].partition(") ->")
        first, second = (
            [it.strip() for it in side.split(",") if it.strip()] for side in (given, made)
        )
        return tuple(first), tuple(second)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(name.rstrip("?") for name in self._sides[0])

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(name.rstrip("?") for name in self._sides[1])

    @cached_property
    def optional(self) -> frozenset[str]:
        """Arguments that may be absent."""
        every = (*self._sides[0], *self._sides[1])
        return frozenset(name[:-1] for name in every if name.endswith("?"))

    def dtype(self, argument: str) -> str:
        """Return the dtype of an argument."""
        return self.dtypes.get(argument, _DTYPES.get(argument, "float32"))

    def dtypes_of(self, argument: str) -> tuple[str, ...]:
        """Return all dtypes that an argument may have, the usual one first."""
        return self.dtype(argument), *(["bfloat16"] if argument in self.bf16 else [])
