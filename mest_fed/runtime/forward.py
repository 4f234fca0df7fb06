"""A program that answers: the forward pass alone, for any number of examples. Needs NumPy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.program import Program

Array = NDArray[Any]


class CompiledForward:
    """The forward pass of a program, compiled.

    Parameters
    ----------
    program : Program
        Forward operators of a model as in evaluation, for a group of examples: no row of its output
        depends on another row of its input.
    threads : int
        Results have the same bits for any number.

    Raises
    ------
    InputError
        If the program has not one input and one output with a row for each example, or is refused
        by the runtime, or its memory is not there.
    """

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program = program
        ends = [program.of_role(role) for role in ("input", "output")]
        if any(len(found) != 1 for found in ends):
            named = [[program.buffers[it].name for it in found] for found in ends]
            raise InputError(
                f"the program has the inputs {named[0]} and the outputs {named[1]}; "
                "allowed: one of each, of an evaluation"
            )
        given, made = (program.buffers[found[0]] for found in ends)
        #: Examples that are computed together.
        self.group = given.shape[0] if given.shape else 0
        if self.group == 0 or made.shape[:1] != (self.group,):
            raise InputError(
                f"{made.name!r} has shape {made.shape}; allowed: {self.group} rows, one for each "
                "example"
            )
        if any(it.name == "batch_norm" for it in program.operators):
            raise InputError("batch_norm is no operator of an evaluation")
        arena = plan_arena(program)
        try:
            self._runtime = Runtime(program, arena.offsets, arena.peak, threads=threads)
        except MemoryError:
            raise InputError(f"no memory for the program's arena of {arena.peak:,} bytes") from None
        self._input, self._output = map(self._runtime.memory, (given.name, made.name))

    def bind(self, name: str, array: Array) -> None:
        """Let a parameter or state be an array's memory, without a copy.

        Raises
        ------
        InputError
            If there is none of this name, or the array has another shape or type, or may not be
            written, or is not contiguous.
        """
        number = self.program.numbers.get(name)
        if number not in self.program.of_role("parameter", "state"):
            raise InputError(f"{name!r} is no parameter or state of the program")
        self._runtime.bind(number, array)

    def run(self, inputs: Array) -> Array:
        """Return the outputs of some examples, (N, ...).

        Parameters
        ----------
        inputs : array
            Shape (N, ...), the rows as in the program; N is any number.

        Raises
        ------
        InputError
            If a row has another shape or type, or slots or indices are out of range.
        """
        held = self._input
        if inputs.shape[1:] != held.shape[1:] or inputs.dtype != held.dtype:
            raise InputError(
                f"inputs have shape {inputs.shape} of {inputs.dtype}; "
                f"allowed: (N, *{held.shape[1:]}) of {held.dtype}"
            )
        outputs = np.empty((len(inputs), *self._output.shape[1:]), self._output.dtype)
        for first in range(0, len(inputs), self.group):
            rows = inputs[first : first + self.group]
            held[: len(rows)] = rows  # what stands behind the last ones is of no account
            self._runtime.run()
            outputs[first : first + len(rows)] = self._output[: len(rows)]
        return outputs
