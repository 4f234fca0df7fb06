"""A program: operators over numbered buffers, and their JSON (``reading.py`` reads it).

A program that exists is valid: the constructor of :class:`Program` refuses any other
(``program_checks.py``). Nothing of a buffer's size is allocated here.

A program is written for a group of examples. Forward and backward run once for each group of a
batch, the update once for the batch. What passes from groups to the update is a ``sum``.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mest_fed.errors import not_allowed
from mest_fed.runtime.program_checks import check_program
from mest_fed.runtime.program_parts import KEPT, ROWS, Buffer, Operator
from mest_fed.runtime.shapes import Shapes

FORMAT, VERSION = "mest-fed program", 2
PHASES = ("forward", "backward", "update")


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
        check_program(self.buffers, self.operators, self.phases)

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
            "buffers": [
                {
                    "name": it.name,
                    "shape": list(it.shape),
                    "dtype": it.dtype,
                    "role": it.role,
                    "margin": it.margin,
                }
                for it in self.buffers
            ],
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
