"""Programs of a group of any size, of which two are made: the others follow from them.

A trace, its gradients and its passes cost many times what other shapes for the same operators do.
Two sizes tell the dimensions that count examples from those that do not. Where operators, layouts
or attributes differ between them, what they are depends on the size, and each size is made.
"""

from collections.abc import Callable
from dataclasses import replace

from mest_fed.errors import InputError
from mest_fed.runtime.program import Buffer, Program


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
    if one.operators != two.operators or one.phases != two.phases:
        return None
    if len(one.buffers) != len(two.buffers):
        return None
    buffers: list[Buffer] = []
    for mine, other in zip(one.buffers, two.buffers, strict=True):
        if mine == other:
            buffers.append(mine)
            continue
        if replace(mine, shape=other.shape) != other or len(mine.shape) != len(other.shape):
            return None
        shape = []
        for length, its in zip(mine.shape, other.shape, strict=True):
            if length == its:
                shape.append(length)
                continue
            each, rest = divmod(length, one.examples)
            if rest or its != each * two.examples:
                return None
            shape.append(each * examples)
        buffers.append(replace(mine, shape=tuple(shape)))
    try:
        return Program(tuple(buffers), one.operators, one.phases)
    except InputError:
        return None
