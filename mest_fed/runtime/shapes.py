"""Shapes of one operator's arguments by name, and the rules of windows that slide over planes."""

from collections.abc import Iterable, Mapping
from typing import Any

from mest_fed.errors import InputError

Shape = tuple[int, ...]


class Shapes:
    """Shapes of an operator's inputs and outputs, which its rule compares or completes.

    Parameters
    ----------
    operator : str
        Name of the operator, for errors.
    known : mapping of str to tuple of int
        Shapes by argument; an argument that is absent is left out.
    wanted : collection of str
        Outputs whose shapes the rule gives.
    attributes : mapping
        Those of the operator.
    """

    def __init__(
        self,
        operator: str,
        known: Mapping[str, Shape],
        wanted: Iterable[str],
        attributes: Mapping[str, Any],
    ) -> None:
        self.operator, self.attributes = operator, attributes
        self._known = dict(known)
        self._wanted = set(wanted)

    def __getitem__(self, name: str) -> Shape:
        if name not in self._known:
            raise InputError(f"{self.operator}: the shape of {name} must be given")
        return self._known[name]

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def dims(self, name: str, count: int, *, at_least: bool = False) -> Shape:
        """Return the shape of an argument of ``count`` dimensions."""
        shape = self[name]
        if len(shape) != count and not (at_least and len(shape) > count):
            more = " or more" if at_least else ""
            raise self.wrong(name, shape, f"{count}{more} dimensions")
        return shape

    def expect(self, name: str, shape: Shape) -> None:
        """Compare the shape of an argument that is there, or note that of a wanted output."""
        if name in self._known:
            if self._known[name] != shape:
                raise self.wrong(name, self._known[name], shape)
        elif name in self._wanted:
            self._known[name] = shape

    def expect_all(self, names: Iterable[str], shape: Shape) -> None:
        """Do the same for several arguments of one shape."""
        for name in names:
            self.expect(name, shape)

    def require(self, holds: bool, key: str, value: object, allowed: str) -> None:
        """Refuse a value that does not go with the shapes.

        Raises
        ------
        InputError
            If the condition does not hold.
        """
        if not holds:
            raise self.wrong(key, value, allowed)

    def wrong(self, key: str, value: object, allowed: object) -> InputError:
        """Build the error for a shape or attribute."""
        what = "shape" if key in self._known else "value"
        return InputError(f"{self.operator}: {key} has {what} {value}; allowed: {allowed}")


def slide(s: Shapes, size: Shape, kernel: Shape, *, ceil: bool = False) -> Shape:
    """Return height and width of what a window gives that slides over planes, as torch has it.

    Parameters
    ----------
    s : Shapes
        Its attributes ``stride`` and ``padding`` are of the two axes.
    size, kernel : tuple of int
        Height and width of plane and window.
    ceil : bool
        Whether a last window that is partly outside counts.
    """
    stride, padding = s.attributes["stride"], s.attributes["padding"]
    result = []
    for length, window, step, edge in zip(size, kernel, stride, padding, strict=True):
        room = length + 2 * edge - window
        s.require(room >= 0, "kernel", window, f"at most {length + 2 * edge}, the padded plane")
        count = room // step + 1
        if ceil and room % step and count * step < length + edge:
            count += 1
        result.append(count)
    return tuple(result)
