"""Several operators become one: who writes and reads what before, and the program after."""

from collections.abc import Iterable, Mapping

from mest_fed.runtime.program import Operator, Program


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
    kept: list[Operator] = []
    phases = [0, 0, 0]
    ends = [sum(program.phases[: phase + 1]) for phase in range(3)]
    for place, before in enumerate(program.operators):
        operator = changes.get(place, before)
        if operator is not None:
            kept.append(operator)
            phases[next(phase for phase, end in enumerate(ends) if place < end)] += 1
    used = {number for it in kept for number in (*it.reads, *it.writes)}
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
        for it in kept
    )
    buffers = tuple(program.buffers[number] for number in left)
    return Program(buffers, operators, (phases[0], phases[1], phases[2]))


def operator(name: str, attributes: Mapping[str, object], **arguments: int | None) -> Operator:
    """Return an operator by the names of its arguments; those that are None are absent."""
    blank = Operator(name, (), (), {})
    sides = [
        tuple(-1 if (it := arguments.get(argument)) is None else it for argument in side)
        for side in (blank.kind.inputs, blank.kind.outputs)
    ]
    return Operator(name, sides[0], sides[1], attributes)
