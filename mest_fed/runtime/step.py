"""A program that trains: memory for it, the native runtime, one call a step. Needs NumPy alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.program import Program

Array = NDArray[Any]


class CompiledStep:
    """The training step of a program, compiled.

    Parameters
    ----------
    program : Program
        A whole step: forward, loss, gradients and update.
    threads : int
        Results have the same bits for any number.
    rng : numpy.random.Generator, optional
        Draws the seeds of dropout.

    Raises
    ------
    InputError
        If the program is no whole step of one input, drops without a generator, or is refused by
        the runtime, or its memory is not there.

    Examples
    --------
    Ten epochs, from a program and weights in files, without torch::

        program = read_program(Path("step.json"))
        step = CompiledStep(program)
        with np.load("weights.npz") as weights:
            for name in weights:
                step.load(name, weights[name])
        for epoch in range(10):
            for images, labels in batches:
                loss = step.step(images, labels, learning_rate=0.1)
        np.savez("trained.npz", **step.arrays)
    """

    def __init__(
        self, program: Program, threads: int = 1, rng: np.random.Generator | None = None
    ) -> None:
        self.program = program
        targets, rates = _one(program, "targets"), _one(program, "rates")
        loss, self._seeds = _one(program, "loss"), sorted(set(_arguments(program, "seed")))
        others = [targets, rates, *self._seeds]
        given = (program.buffers[it].name for it in program.of_role("input"))
        inputs = [name for name in given if name not in others]
        if len(inputs) != 1:
            raise InputError(f"the program has the inputs {inputs}; allowed: one beside {others}")
        if self._seeds and rng is None:
            raise InputError(f"the program draws {self._seeds}; allowed: with a generator, rng")
        #: Draws the seeds of dropout from now on.
        self.rng = rng
        self._names = inputs[0], targets, rates, loss
        arena = plan_arena(program)
        #: Bytes of temporary buffers and outputs, of which none is allocated in a step (exact).
        self.arena_bytes = arena.peak
        try:
            #: The runtime below, for a part of a step.
            self.runtime = Runtime(program, arena.offsets, arena.peak, threads=threads)
        except MemoryError:
            raise InputError(f"no memory for the program's arena of {arena.peak:,} bytes") from None
        held = (program.buffers[it].name for it in program.of_role("parameter", "state"))
        #: Parameters and states by name: views, which steps change and which may be written.
        self.arrays: dict[str, Array] = {name: self.runtime.memory(name) for name in held}

    def load(self, name: str, array: Any) -> None:
        """Copy an array into a parameter or state.

        Raises
        ------
        InputError
            If there is none of this name, or its shape is another, or its numbers do not fit.
        """
        self._check_held(name)
        self.runtime.write(name, array)

    def _check_held(self, name: str) -> None:
        if name not in self.arrays:
            allowed = ", ".join(self.arrays)
            raise InputError(f"{name!r} is no parameter or state; allowed: {allowed}")

    def bind(self, name: str, array: Array) -> None:
        """Let a parameter or state be an array's memory, which steps then change, without a copy.

        Raises
        ------
        InputError
            If there is none of this name, or the array has another shape or type, or may not be
            written, or is not contiguous.
        """
        self._check_held(name)
        self.runtime.bind(self.program.numbers[name], array)
        self.arrays[name] = array

    def write(self, inputs: Any, targets: Any, learning_rate: float) -> None:
        """Copy what a step takes into its buffers, and draw the seeds of dropout."""
        values = (inputs, targets, [learning_rate])
        for name, value in zip(self._names, values, strict=False):
            self.runtime.write(name, value)
        if self.rng is not None:
            for name in self._seeds:
                self.runtime.write(name, self.rng.integers(2**63, size=1))

    def step(self, inputs: Any, targets: Any, learning_rate: float) -> float:
        """Train on one batch.

        Parameters
        ----------
        inputs, targets : array
            In the shapes of the program, the batch first.
        learning_rate : float
            Of this step.

        Returns
        -------
        float
            Loss, the mean over the batch, before the update.

        Raises
        ------
        InputError
            If a shape or type is another, or slots, targets or indices are out of range. Parameters
            are as they were then.
        """
        self.write(inputs, targets, learning_rate)
        self.runtime.run()
        return float(self.runtime.memory(self._names[-1]))


def _arguments(program: Program, argument: str) -> Iterator[str]:
    """Yield the names of the buffers that operators have as an argument of this name."""
    for operator in program.operators:
        if argument in operator.arguments:
            yield program.buffers[operator.arguments[argument]].name


def _one(program: Program, argument: str) -> str:
    found = sorted(set(_arguments(program, argument)))
    if len(found) != 1:
        raise InputError(f"the program has {argument}: {found}; allowed: one, of a whole step")
    return found[0]
