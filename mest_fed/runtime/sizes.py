"""Programs of a group of any size, of which two are made: the others follow from them.

A trace, its gradients and its passes cost many times what other shapes for the same operators do.
Two sizes tell the dimensions that count examples from those that do not. Where operators, layouts
or attributes differ between them, what they are depends on the size, and each size is made.
"""

from collections.abc import Callable
from dataclasses import replace

from mest_fed.errors import InputError
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Buffer


class Sizes:
    """The programs of one step for groups of any size.

    Parameters
    ----------
    make : callable
        Gives the program of so many examples.
    first : Program
        One of the two that are made. The other's size is fixed, too, so that a program does not
        depend on what was asked for before.
    """

    def __init__(self, make: Callable[[int], Program], first: Program) -> None:
        self._make = make
        self._first = first.examples
        self._made = {self._first: first}

    def __call__(self, examples: int) -> Program:
        """Return the program of so many examples.

        Raises
        ------
        InputError
            As it is made.
        """
        if examples == self._first:
            return self._of(examples)
        other = second_size(self._first)
        if self._first != 1 and examples != other:
            found = resized(self._of(self._first), self._of(other), examples)
            if found is not None:
                return found
        return self._of(examples)

    def _of(self, examples: int) -> Program:
        if examples not in self._made:
            self._made[examples] = self._make(examples)
        return self._made[examples]


def second_size(first: int) -> int:
    """Return the size that is made beside the first; one example may have no batch statistics."""
    return 3 if first == 2 else 2


def resized(one: Program, two: Program, examples: int) -> Program | None:
    """Return the program of another number of examples; None where two sizes do not tell it.

    Parameters
    ----------
    one, two : Program
        Of different numbers of examples.
    examples : int
        Of the program that is returned.
    """

    def length(mine: int, its: int) -> int | None:
        each, rest = divmod(mine, one.examples)
        return None if rest or its != each * two.examples else each * examples

    found = _with_lengths(one, two, length)
    if found is None or min(one.examples, two.examples) <= examples <= max(
        one.examples, two.examples
    ):
        return found  # shapes that fit at both ends fit between them
    try:
        return found.checked()
    except InputError:
        return None


def interpolated(
    one: Program, two: Program, forward: tuple[Program, Program, Program]
) -> Program | None:
    """Return the step of a forward program between two others; None where they do not tell it.

    Parameters
    ----------
    one, two : Program
        The steps of the first two forward programs, made in one way.
    forward : tuple of Program
        Three that differ in lengths alone, such as those of one model at three densities. The last
        one's lengths are between the others'.
    """
    lengths = _lengths(*forward)
    if lengths is None:
        return None

    def length(mine: int, its: int) -> int | None:
        found = set()
        for (first, second), third in lengths.items():
            times, rest = divmod(mine, first)
            if rest == 0 and its == times * second:
                found.add(times * third)
        return found.pop() if len(found) == 1 else None

    return _with_lengths(one, two, length)


def _lengths(one: Program, two: Program, three: Program) -> dict[tuple[int, int], int] | None:
    """Return the third's length for each pair of lengths of two that differ."""
    if not one.operators == two.operators == three.operators:
        return None
    if not len(one.buffers) == len(two.buffers) == len(three.buffers):
        return None
    found: dict[tuple[int, int], int] = {}
    for first, second, third in zip(one.buffers, two.buffers, three.buffers, strict=True):
        if first == second == third:
            continue
        if not (_alike(first, second) and _alike(first, third)):
            return None
        for pair in zip(first.shape, second.shape, third.shape, strict=True):
            low, high = sorted(pair[:2])
            between = low <= pair[2] <= high
            if not between or found.setdefault(pair[:2], pair[2]) != pair[2]:
                return None
    return {pair: third for pair, third in found.items() if pair[0] != pair[1]}


def _alike(one: Buffer, two: Buffer) -> bool:
    """Say whether two buffers differ in lengths alone."""
    return len(one.shape) == len(two.shape) and replace(one, shape=two.shape) == two


def _with_lengths(
    one: Program, two: Program, length: Callable[[int, int], int | None]
) -> Program | None:
    """Return a program of the same operators, with other lengths where two programs' differ.

    Parameters
    ----------
    one, two : Program
        What they have in common stays.
    length : callable
        Gives a length for one of each; None where they do not tell it.
    """
    if one.operators != two.operators or one.phases != two.phases:
        return None
    if len(one.buffers) != len(two.buffers):
        return None
    known: dict[tuple[int, int], int | None] = {}
    buffers: list[Buffer] = []
    for mine, other in zip(one.buffers, two.buffers, strict=True):
        if mine == other:
            buffers.append(mine)
            continue
        if not _alike(mine, other):
            return None
        shape = []
        for pair in zip(mine.shape, other.shape, strict=True):
            if pair[0] != pair[1] and pair not in known:
                known[pair] = length(*pair)
            found = pair[0] if pair[0] == pair[1] else known[pair]
            if found is None:
                return None
            shape.append(found)
        buffers.append(Buffer(mine.name, tuple(shape), mine.dtype, mine.role, mine.margin))
    return Program.unchecked(tuple(buffers), one.operators, one.phases)
