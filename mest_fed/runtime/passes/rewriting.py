"""What passes share: who uses a buffer, and a program with other operators.

A rewritten program has each operator in the phase of the one whose place it takes.
"""

from collections.abc import Callable, Iterable, Mapping

from mest_fed.runtime.build import Builder
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator


class Uses:
    """Who writes and reads the buffers of a program.

    Parameters
    ----------
    program : Program
        It is only read.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.readers: dict[int, list[int]] = {}
        self.writers: dict[int, list[int]] = {}
        for place, operator in enumerate(program.operators):
            for number in operator.reads:
                self.readers.setdefault(number, []).append(place)
            for number in operator.writes:
                self.writers.setdefault(number, []).append(place)

    def passing(self, number: int) -> bool:
        """Say whether a buffer is written once, and then only read by operators."""
        of_parameter = self.program.buffers[number].role == "sum"
        alone = self.program.buffers[number].role == "temporary" or of_parameter
        return alone and len(self.writers.get(number, [])) == 1

    def reader(self, number: int, *names: str) -> int | None:
        """Return the place of the one operator of these names that reads a buffer."""
        found = [
            place
            for place in self.readers.get(number, [])
            if self.program.operators[place].name in names
        ]
        return found[0] if len(found) == 1 else None

    def read_by(self, number: int, places: Iterable[int | None]) -> bool:
        """Say whether no other operators than these read a buffer that is only passed on."""
        return self.passing(number) and set(self.readers.get(number, [])) <= {*places}


def rebuilt(
    program: Program,
    builder: Builder,
    operators_at: Callable[[int, Operator], Iterable[Operator]],
) -> Program:
    """Return the program with what stands in each operator's place.

    Parameters
    ----------
    program : Program
        Whose operators are replaced.
    builder : Builder
        Holds the buffers.
    operators_at : callable
        Takes a place and its operator, and returns the operators that stand there then.
    """
    operators: list[Operator] = []
    ends: list[int] = []
    for place, operator in enumerate(program.operators):
        operators += operators_at(place, operator)
        ends.append(len(operators))
    forward, backward, _ = program.phases
    first = ends[forward - 1] if forward else 0
    second = ends[forward + backward - 1] if forward + backward else 0
    phases = first, second - first, len(operators) - second
    return Program.unchecked(tuple(builder.buffers), tuple(operators), phases)


def replaced(program: Program, changes: Mapping[int, Operator | None]) -> Program:
    """Put operators at the places of others, or nothing; buffers that none uses any more go.

    Parameters
    ----------
    program : Program
        It is not changed.
    changes : mapping of int to Operator or None
        By the place of what was there before.
    """
    if not changes:
        return program

    def kept(place: int, before: Operator) -> list[Operator]:
        operator = changes.get(place, before)
        return [] if operator is None else [operator]

    return _without_unused(rebuilt(program, Builder(program), kept))


def _without_unused(program: Program) -> Program:
    """Leave out temporary buffers and sums that no operator uses."""
    used = {number for it in program.operators for number in (*it.reads, *it.writes)}
    left = [
        number
        for number, buffer in enumerate(program.buffers)
        if number in used or buffer.role not in ("temporary", "sum")
    ]
    new = {number: place for place, number in enumerate(left)}
    operators = tuple(
        Operator(
            it.name,
            tuple(new.get(number, number) for number in it.inputs),
            tuple(new.get(number, number) for number in it.outputs),
            it.attributes,
        )
        for it in program.operators
    )
    buffers = tuple(program.buffers[number] for number in left)
    return Program.unchecked(buffers, operators, program.phases)


def operator(name: str, attributes: Mapping[str, object], **arguments: int | None) -> Operator:
    """Return an operator by the names of its arguments; those that are None are absent."""
    blank = Operator(name, (), (), {})
    sides = [
        tuple(-1 if (it := arguments.get(argument)) is None else it for argument in side)
        for side in (blank.kind.inputs, blank.kind.outputs)
    ]
    return Operator(name, sides[0], sides[1], attributes)
