"""The backward pass: operators that compute the gradients of a forward program's parameters.

The loss and these gradients are sums, as the operators write them: of a batch of one group.
``passes/groups.py`` has them added up over several.

Reverse-mode differentiation over the list of operators (Griewank and Walther 2008, chapter 3): one
rule an operator (``gradient_rules.py``) says which operators make the gradients of its inputs from
those of its outputs.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradient_rules import RULES
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator
from mest_fed.runtime.shapes import Shape

#: The setting that holds what a row counts in the loss: 1 / rows that count.
SHARE = "share"


@dataclass(frozen=True)
class Gradients:
    """A program with a backward pass.

    Parameters
    ----------
    program : Program
        Forward and backward operators.
    of : dict of int to int
        The buffer of each parameter's gradient.
    """

    program: Program
    of: dict[int, int]


@dataclass
class _Gradient:
    """The gradient of a buffer so far; ``alone`` says whether no other buffer's gradient is it."""

    buffer: int
    alone: bool


def with_loss(forward: Program, output: str, loss: str = "cross_entropy") -> Program:
    """Add the loss of an output against the input ``targets``: the sum ``loss``.

    Each row counts by the setting ``share``; in a cross-entropy not those whose target is negative.

    Parameters
    ----------
    forward : Program
        Without a loss.
    output : str
        Name of the logits, (..., classes); or of numbers, (n, ...), whose targets are (n, numbers).
    loss : str
        An operator: ``cross_entropy``, or a loss of numbers.

    Raises
    ------
    InputError
        If there is no such buffer, or it has no classes.
    """
    if output not in forward.numbers:
        raise not_allowed("output", output, "the name of a buffer")
    builder = Builder(forward)
    logits = forward.numbers[output]
    targets, dtype = forward.buffers[logits].shape[:-1], "int64"
    if OPERATORS[loss].dtype("targets") == "float32":
        shape, dtype = forward.buffers[logits].shape, "float32"
        targets = shape[0], math.prod(shape[1:])
        if shape != targets:
            (logits,) = builder.operator("reshape", {"x": logits}, {"y": targets}, "numbers")
    given = {
        OPERATORS[loss].inputs[0]: logits,
        "targets": builder.buffer("targets", targets, dtype, "input"),
        "share": builder.buffer(SHARE, (1,), role="setting"),
    }
    made = builder.operator(loss, given, {}, "loss")[0]
    builder.role(made, "sum")
    return builder.end_phase(0).unchecked()


def with_gradients(forward: Program, trained: Collection[str] | None = None) -> Gradients:
    """Add the operators that compute gradients of the loss.

    Parameters
    ----------
    forward : Program
        With a loss; see :func:`with_loss`.
    trained : collection of str, optional
        Names of the parameters whose gradients are wanted; all if left out.

    Raises
    ------
    InputError
        If an operator has no gradient, a name is no parameter's, or there is no loss.
    """
    parameters = {it: forward.buffers[it].name for it in forward.of_role("parameter")}
    unknown = [] if trained is None else [it for it in trained if it not in parameters.values()]
    if unknown:
        raise not_allowed("trained", unknown[0], "names of parameters")
    if not any("loss" in it.arguments for it in forward.operators):
        raise InputError("a program without a loss has no gradients; allowed: with_loss(program)")
    wanted = {it for it, name in parameters.items() if trained is None or name in trained}
    backward = _Backward(forward, set(wanted))
    for operator in reversed(forward.operators):
        backward.through(operator)
    found = {it: made.buffer for it, made in backward.gradients.items() if it in parameters}
    for gradient in found.values():
        backward.builder.role(gradient, "sum")
    program = backward.builder.end_phase(1).unchecked()
    return Gradients(program, dict(sorted(found.items())))


class _Backward:
    """The backward pass in the making.

    Parameters
    ----------
    forward : Program
        What is differentiated.
    wanted : set of int
        Parameters whose gradients are wanted; buffers that depend on them join.
    """

    def __init__(self, forward: Program, wanted: set[int]) -> None:
        self.builder = Builder(forward)
        self.gradients: dict[int, _Gradient] = {}
        self.wanted = wanted
        for operator in forward.operators:
            if wanted.intersection(operator.inputs):
                wanted.update(operator.outputs)
        wanted.discard(-1)

    def through(self, operator: Operator) -> None:
        """Add what takes the gradients of an operator's outputs to its inputs."""
        if "loss" not in operator.arguments and not any(
            it in self.gradients for it in operator.outputs
        ):
            return
        if not self.wanted.intersection(operator.inputs):
            return
        if operator.name not in RULES:
            raise InputError(f"{operator.name} has no gradient; allowed: {', '.join(RULES)}")
        RULES[operator.name](Step(self, operator))

    def give(self, buffer: int, gradient: int, *, alone: bool = True) -> None:
        """Add a contribution to the gradient of a buffer.

        Parameters
        ----------
        buffer, gradient : int
            Whose gradient, and the contribution.
        alone : bool
            Whether the contribution is no other buffer's gradient, and so may be added to.
        """
        before = self.gradients.get(buffer)
        if before is None:
            self.gradients[buffer] = _Gradient(gradient, alone)
        elif before.alone:
            self.builder.operator("accumulate", {"a": gradient}, {"into": before.buffer})
        elif alone:
            self.builder.operator("accumulate", {"a": before.buffer}, {"into": gradient})
            self.gradients[buffer] = _Gradient(gradient, alone)
        else:
            both = {"a": before.buffer, "b": gradient}
            (total,) = self.builder.operator("add", both, {}, self.label(buffer))
            self.gradients[buffer] = _Gradient(total, True)

    def label(self, buffer: int) -> str:
        """Return the name of a buffer's gradient."""
        return f"{self.builder.buffers[buffer].name}:gradient"


class Step:
    """What a rule sees: one forward operator, and the way to give gradients to its inputs."""

    def __init__(self, backward: _Backward, operator: Operator) -> None:
        self.backward, self.operator = backward, operator
        self.buffers = operator.arguments

    def shape(self, argument: str) -> Shape:
        """Return the shape of an argument."""
        return self.backward.builder.buffers[self.buffers[argument]].shape

    def gradient(self, output: str) -> int:
        """Return the gradient of an output."""
        return self.backward.gradients[self.buffers[output]].buffer

    def reached(self, output: str) -> bool:
        """Say whether an output has a gradient."""
        return self.buffers[output] in self.backward.gradients

    def zeros(self, output: str) -> int:
        """Return a gradient of zeros, for an output that nothing reads."""
        given = {"x": self.buffers[output]}
        label = self.backward.label(self.buffers[output])
        nothing = {"factor": 0.0, "offset": 0.0}
        return self.backward.builder.operator("scale", given, {}, label, **nothing)[0]

    def wants(self, argument: str) -> bool:
        """Say whether the gradient of an input is wanted."""
        return self.buffers.get(argument) in self.backward.wanted

    def give(self, argument: str, gradient: int, *, alone: bool = True) -> None:
        """Give a contribution to an input."""
        if self.wants(argument):
            self.backward.give(self.buffers[argument], gradient, alone=alone)

    def emit(
        self,
        name: str,
        inputs: Mapping[str, int | None],
        gives: Mapping[str, str],
        **attributes: Any,
    ) -> None:
        """Add an operator whose outputs are gradients of inputs.

        Parameters
        ----------
        name, inputs, **attributes
            As for :meth:`Builder.operator`.
        gives : dict of str to str
            Output -> the forward operator's input whose gradient it is, and whose shape it has.
        """
        builder = self.backward.builder
        outputs: dict[str, int | Shape | None] = {}
        for output, argument in gives.items():
            buffer = self.buffers[argument]
            shape = builder.buffers[buffer].shape
            outputs[output] = builder.buffer(self.backward.label(buffer), shape)
        builder.operator(name, inputs, outputs, **attributes)
        made = builder.operators[-1].arguments
        for output, argument in gives.items():
            self.give(argument, made[output])
