"""A program that trains or predicts: the native runtime, one call a batch. Needs NumPy alone."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.batches import Batches, Resize
from mest_fed.runtime.native import fitting
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import KEPT

Array = NDArray[Any]


class _Compiled:
    """What a step and a forward pass have in common: parameters and states by name."""

    def __init__(self, batches: Batches) -> None:
        self.program = batches.program
        self._batches = batches
        #: The runtime below, of one group, for a part of a step.
        self.runtime = batches.runtime
        #: Bytes of temporary buffers, of which none is allocated in a step (exact): an arena for
        #: each thread.
        self.arena_bytes = batches.runtime.arena.nbytes
        held = (self.program.buffers[it].name for it in self.program.of_role(*KEPT))
        #: Parameters and states by name, which steps change and which may be written.
        self.arrays: dict[str, Array] = {name: batches.arrays[name] for name in held}
        made = [self.program.buffers[it].name for it in self.program.of_role("output")]
        self._output = made[0] if len(made) == 1 else ""

    def load(self, name: str, array: Any) -> None:
        """Copy an array into a parameter or state.

        Raises
        ------
        InputError
            If there is none of this name, or its shape is another, or its numbers do not fit.
        """
        self._check_held(name)
        self.runtime.write(name, array)

    def bind(self, name: str, array: Array) -> None:
        """Let a parameter or state be an array's memory, which steps then change, without a copy.

        Raises
        ------
        InputError
            If there is none of this name, or the array has another shape or type, or may not be
            written, or is not contiguous.
        """
        self._check_held(name)
        self._batches.bind(name, array)
        self.arrays[name] = array

    def release_memory(self) -> None:
        """Give temporary memory back to the system until the next batch.

        Parameters and states stay; gradients and outputs of the last batch may be lost.
        """
        self._batches.release_memory()

    def _check_held(self, name: str) -> None:
        if name not in self.arrays:
            allowed = ", ".join(self.arrays)
            raise InputError(f"{name!r} is no parameter or state; allowed: {allowed}")

    @property
    def outputs(self) -> Array:
        """What the model said of the last batch, (examples, ...): valid until the next one.

        Raises
        ------
        InputError
            If there was no batch yet, or the program has not one output.
        """
        if self._output not in self._batches.outputs:
            raise InputError("no outputs; allowed: of a program with one output, after a batch")
        return self._batches.outputs[self._output]


class CompiledStep(_Compiled):
    """The training step of a program, compiled.

    Parameters
    ----------
    program : Program
        A whole step of a group of examples: forward, loss, gradients and update.
    threads : int
        Results have the same bits for any number.
    rng : numpy.random.Generator, optional
        Draws the seeds of dropout.
    resize : callable, optional
        Gives the program of so many examples, with the same parameters and states. Without it a
        batch is a multiple of the program's group, or the group itself where batch statistics are
        taken.
    micro_batch : int, optional
        Where batch statistics are taken: of how many examples at most. The gradients of a batch are
        the sum of those of its parts.
    batch : int, optional
        Examples of the largest batch that is expected: no more groups than it has run at once, and
        take memory. By default as many as threads.

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
        self,
        program: Program,
        threads: int = 1,
        rng: "np.random.Generator | None" = None,  # NumPy loads its generators where named
        resize: Resize | None = None,
        *,
        micro_batch: int | None = None,
        batch: int | None = None,
    ) -> None:  # in quotes, since NumPy loads its generators where they are first named
        facts = facts_of(program)
        self._targets, self._rates, self._share = facts.targets, facts.rates, facts.share
        self._seeds, self._input, self._loss = facts.seeds, facts.input, facts.loss
        if self._seeds and rng is None:
            raise InputError(f"the program draws {self._seeds}; allowed: with a generator, rng")
        #: Draws the seeds of dropout from now on.
        self.rng = rng
        super().__init__(Batches(program, threads, resize, batch))
        self._batches.micro_batch = micro_batch
        #: Gradients of the last step by the name of the parameter, of the mean loss over the batch.
        #: They stay until the next step.
        self.gradients: Mapping[str, Array] = {
            name: self._batches.arrays[gradient] for name, gradient in _gradients(program)
        }

    def step(self, inputs: Any, targets: Any, learning_rate: float) -> float:
        """Train on one batch.

        Parameters
        ----------
        inputs, targets : array
            In the shapes of the program, but of any number of examples. Of classes, those that are
            negative do not count. Targets that are numbers may have any shape of an example.
        learning_rate : float
            Of this step.

        Returns
        -------
        float
            Loss, the mean over the targets that count, before the update; 0 if none does.

        Raises
        ------
        InputError
            If a shape or type is another, or slots, targets or indices are out of range. Parameters
            are as they were then.
        """
        dtype = self.program.buffers[self.program.numbers[self._targets]].dtype
        wanted = fitting(self._targets, targets, dtype)
        if dtype == "int64":
            counted = int(np.count_nonzero(wanted >= 0))
        else:
            counted = len(wanted)
            wanted = wanted.reshape(counted, -1)
        self._batches.arrays[self._share][...] = 1 / max(1, counted)
        self._batches.arrays[self._rates][...] = learning_rate
        if self.rng is not None:
            for name in self._seeds:
                self.runtime.write(name, self.rng.integers(2**63, size=1))
        self._batches.groups({self._input: inputs, self._targets: wanted})
        self._batches.update()
        self._batches.unbind_inputs()
        return float(self._batches.arrays[self._loss])


class CompiledForward(_Compiled):
    """The forward pass of a program, compiled: what a model says of examples.

    Parameters
    ----------
    program : Program
        Forward operators of a group of examples, which change no state and draw nothing.
    threads : int
        Results have the same bits for any number.
    resize, batch
        As for :class:`CompiledStep`.
    arrays : mapping of str to array, optional
        Memory of parameters and states by name, for example ``CompiledStep.arrays``: what trains
        there predicts here, without a copy.

    Raises
    ------
    InputError
        If the program has not one input and one output, keeps statistics, draws, or is refused.
    """

    def __init__(
        self,
        program: Program,
        threads: int = 1,
        resize: Resize | None = None,
        arrays: Mapping[str, Array] | None = None,
        *,
        batch: int | None = None,
    ) -> None:
        more = [program.buffers[it].name for it in program.of_role("setting", "sum")]
        if more or not program.takes_groups or program.phases[1:] != (0, 0):
            what = f"takes {more}" if more else "trains or keeps statistics"
            raise InputError(f"the program {what}; allowed: one of forward operators alone")
        if len(program.of_role("output")) != 1:
            raise InputError("the program has not one output; allowed: one")
        self._input = _one_input(program, "")
        super().__init__(Batches(program, threads, resize, batch, arrays))

    def predict(self, inputs: Any) -> Array:
        """Return what the model says of examples, for example logits (N, classes).

        Parameters
        ----------
        inputs : array
            In the shape of the program, but of any number of examples.

        Returns
        -------
        array
            Of the program's memory: valid until the next call.

        Raises
        ------
        InputError
            If a shape or type is another, or slots or indices are out of range.
        """
        self._batches.groups({self._input: inputs})
        self._batches.unbind_inputs()
        return self.outputs


class StepFacts(NamedTuple):
    """Names of the buffers that a step is given or read by.

    Parameters
    ----------
    input, targets : str
        Rows of a batch.
    rates, share : str
        Settings: the learning rate, and 1 / (targets that count).
    loss : str
        The sum that holds the mean loss after a step.
    seeds : list of str
        What dropout draws from.
    """

    input: str
    targets: str
    rates: str
    share: str
    loss: str
    seeds: list[str]


def facts_of(program: Program) -> StepFacts:
    """Return what a step is given and read by.

    Raises
    ------
    InputError
        If the program is no whole step of one input.
    """
    targets = _one(program, "targets", "input")
    rates, share = (_one(program, it, "setting") for it in ("rates", "share"))
    loss = _sum_of(program, _one(program, "loss"))
    seeds = sorted(set(_arguments(program, "seed")))
    return StepFacts(_one_input(program, targets), targets, rates, share, loss, seeds)


def _one_input(program: Program, targets: str) -> str:
    given = (program.buffers[it].name for it in program.of_role("input"))
    inputs = [name for name in given if name != targets]
    if len(inputs) != 1:
        beside = f" beside {targets!r}" if targets else ""
        raise InputError(f"the program has the inputs {inputs}; allowed: one{beside}")
    return inputs[0]


def _sum_of(program: Program, loss: str) -> str:
    """Return the name of the sum that the loss is or is added to."""
    number = program.numbers[loss]
    if program.buffers[number].role == "sum":
        return loss
    for operator in program.operators:
        if operator.name == "accumulate" and operator.inputs[0] == number:
            return program.buffers[operator.outputs[0]].name
    raise InputError(f"the loss {loss!r} is lost; allowed: a sum, or a part of one")


def _gradients(program: Program) -> Iterator[tuple[str, str]]:
    """Yield each parameter that is updated, and its gradient, if that is a sum."""
    made_of: dict[int, int] = {}  # what is clipped, or drawn to a reference -> the gradient
    for operator in program.operators[program.per_group :]:
        numbers = operator.arguments
        if "gradient" not in numbers:
            continue
        gradient = made_of.get(numbers["gradient"], numbers["gradient"])
        if "y" in numbers:
            made_of[numbers["y"]] = gradient
        elif program.buffers[gradient].role == "sum":
            yield program.buffers[numbers["parameter"]].name, program.buffers[gradient].name


def _arguments(program: Program, argument: str) -> Iterator[str]:
    """Yield the names of the buffers that operators have as an argument of this name."""
    for operator in program.operators:
        if argument in operator.arguments:
            yield program.buffers[operator.arguments[argument]].name


def _one(program: Program, argument: str, role: str = "") -> str:
    found = sorted(set(_arguments(program, argument)))
    if len(found) != 1:
        raise InputError(f"the program has {argument}: {found}; allowed: one, of a whole step")
    given = program.buffers[program.numbers[found[0]]].role
    if role and given != role:
        raise not_allowed(f"role of {found[0]!r}, the step's {argument}", given, role)
    return found[0]
