"""The program in the making: capture, gradients and updates add their operators to it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from mest_fed.errors import InputError
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_checks import check_attributes
from mest_fed.runtime.program_parts import ABSENT, Buffer, Operator
from mest_fed.runtime.shapes import Shape, Shapes


class Builder:
    """Buffers and operators of a program, which grow.

    Parameters
    ----------
    program : Program or None
        What is there already.
    """

    def __init__(self, program: Program | None = None) -> None:
        self.buffers = list(program.buffers) if program else []
        self.operators = list(program.operators) if program else []
        self._phases = program.phases if program else (0, 0, 0)
        self._names = {buffer.name for buffer in self.buffers}

    def buffer(
        self, name: str, shape: Shape, dtype: str = "float32", role: str = "temporary"
    ) -> int:
        """Add a buffer and return its number; a name that is taken gets a number behind it."""
        unique, count = name, 2
        while unique in self._names:
            unique, count = f"{name}#{count}", count + 1
        self._names.add(unique)
        self.buffers.append(Buffer(unique, tuple(shape), dtype, role))
        return len(self.buffers) - 1

    def operator(
        self,
        name: str,
        inputs: Mapping[str, int | None],
        outputs: Mapping[str, int | Shape | None],
        label: str = "",
        **attributes: Any,
    ) -> tuple[int, ...]:
        """Add an operator; buffers of its outputs are made where there are none.

        Parameters
        ----------
        name : str
            Of the table.
        inputs : mapping of str to int or None
            Buffers by argument; an optional one may be left out.
        outputs : mapping of str to int, tuple of int or None
            A buffer, or the shape of a new one, or None for one whose shape the operator's rule
            gives. All outputs that are not optional and are left out count as None.
        label : str
            What the names of new buffers begin with.
        **attributes
            All attributes.

        Returns
        -------
        tuple of int
            The outputs, -1 for those that are absent.

        Raises
        ------
        InputError
            If the shapes do not fit.
        """
        kind = OPERATORS[name]
        given = {it: number for it, number in inputs.items() if number is not None}
        wanted = [it for it in kind.outputs if it not in kind.optional or it in outputs]
        known = {it: self.buffers[number].shape for it, number in given.items()}
        made: dict[str, int] = {}
        for argument in wanted:
            match outputs.get(argument):
                case int(number):
                    made[argument], known[argument] = number, self.buffers[number].shape
                case tuple(shape):
                    known[argument] = shape
        check_attributes(kind, attributes)
        if missing := [it for it in kind.inputs if it not in given and it not in kind.optional]:
            raise InputError(f"{name} needs {missing[0]}")
        shapes = Shapes(name, known, wanted, attributes)
        kind.rule(shapes)
        for argument in wanted:
            if argument not in made:
                title = label if argument == kind.outputs[0] else f"{label}:{argument}"
                made[argument] = self.buffer(title or name, shapes[argument], kind.dtype(argument))
        numbers = tuple(made.get(it, ABSENT) for it in kind.outputs)
        sources = tuple(given.get(it, ABSENT) for it in kind.inputs)
        self.operators.append(Operator(name, sources, numbers, attributes))
        return numbers

    def role(self, number: int, role: str) -> None:
        """Give a buffer another role."""
        buffer = self.buffers[number]
        self.buffers[number] = replace(buffer, role=role)

    def margin(self, number: int, margin: int) -> None:
        """Let a buffer lie as planes with a margin."""
        self.buffers[number] = replace(self.buffers[number], margin=margin)

    def dtype(self, number: int, dtype: str) -> None:
        """Give a buffer another type."""
        self.buffers[number] = replace(self.buffers[number], dtype=dtype)

    def end_phase(self, phase: int) -> Self:
        """Count all operators that no earlier phase has to a phase."""
        counts = list(self._phases)
        counts[phase] += len(self.operators) - sum(counts)
        self._phases = (counts[0], counts[1], counts[2])
        return self

    def program(self) -> Program:
        """Return what was built.

        Raises
        ------
        InputError
            If it is not valid.
        """
        return self.unchecked().checked()

    def unchecked(self) -> Program:
        """Return what was built, to be built on: whoever ends it checks it."""
        return Program.unchecked(tuple(self.buffers), tuple(self.operators), self._phases)
