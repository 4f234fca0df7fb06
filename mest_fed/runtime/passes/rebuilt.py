"""A program with other operators, each in the phase of the one whose place it takes."""

from collections.abc import Callable, Iterable

from mest_fed.runtime.build import Builder
from mest_fed.runtime.program import Operator, Program


def rebuilt(
    program: Program,
    builder: Builder,
    replaced: Callable[[int, Operator], Iterable[Operator]],
) -> Program:
    """Return the program with what stands in each operator's place.

    Parameters
    ----------
    program : Program
        Whose operators are replaced.
    builder : Builder
        Holds the buffers.
    replaced : callable
        Takes a place and its operator, and returns the operators that stand there then.
    """
    operators: list[Operator] = []
    ends: list[int] = []
    for place, operator in enumerate(program.operators):
        operators += replaced(place, operator)
        ends.append(len(operators))
    forward, backward, _ = program.phases
    first = ends[forward - 1] if forward else 0
    second = ends[forward + backward - 1] if forward + backward else 0
    phases = first, second - first, len(operators) - second
    return Program(tuple(builder.buffers), tuple(operators), phases)
