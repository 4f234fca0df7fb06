"""The backward pass: operators that compute the gradients of a forward program's parameters.

The loss and these gradients are sums, as the operators write them: of a batch of one group.
``passes/groups.py`` has them added up over several.

Reverse-mode differentiation over the list of operators (Griewank and Walther 2008, chapter 3): one
rule an operator says which operators make the gradients of its inputs from those of its outputs.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mest_fed.errors import InputError, not_allowed
from mest_fed.runtime.build import Builder
from mest_fed.runtime.program import Operator, Program
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


def with_loss(forward: Program, output: str) -> Program:
    """Add the cross-entropy of an output against the input ``targets``: the sum ``loss``.

    Each row counts by the setting ``share``, but those whose target is negative.

    Parameters
    ----------
    forward : Program
        Without a loss.
    output : str
        Name of the logits, (..., classes).

    Raises
    ------
    InputError
        If there is no such buffer, or it has no classes.
    """
    if output not in forward.numbers:
        raise not_allowed("output", output, "the name of a buffer")
    builder = Builder(forward)
    logits = forward.numbers[output]
    targets = builder.buffer("targets", forward.buffers[logits].shape[:-1], "int64", "input")
    share = builder.buffer(SHARE, (1,), role="setting")
    given = {"logits": logits, "targets": targets, "share": share}
    loss, _ = builder.operator("cross_entropy", given, {}, "loss")
    builder.role(loss, "sum")
    return builder.end_phase(0).program()


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
    if not any(it.name == "cross_entropy" for it in forward.operators):
        raise InputError("a program without a loss has no gradients; allowed: with_loss(program)")
    wanted = {it for it, name in parameters.items() if trained is None or name in trained}
    backward = _Backward(forward, set(wanted))
    for operator in reversed(forward.operators):
        backward.through(operator)
    found = {it: made.buffer for it, made in backward.gradients.items() if it in parameters}
    for gradient in found.values():
        backward.builder.role(gradient, "sum")
    program = backward.builder.end_phase(1).program()
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
        loss = operator.name == "cross_entropy"
        if not loss and not any(it in self.gradients for it in operator.outputs):
            return
        if not self.wanted.intersection(operator.inputs):
            return
        _RULES[operator.name](_Step(self, operator))

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


class _Step:
    """What a rule sees: one forward operator, and the way to give gradients to its inputs."""

    def __init__(self, backward: _Backward, operator: Operator) -> None:
        self.backward, self.operator = backward, operator
        self.buffers = operator.arguments

    def gradient(self, output: str) -> int:
        """Return the gradient of an output."""
        return self.backward.gradients[self.buffers[output]].buffer

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


Rule = Callable[[_Step], None]


def _product(name: str, weight: str) -> Rule:
    """Return the rule of a product: gradients of input, weight or values, and bias."""
    dense = weight == "w"
    of_weight = "weight" if dense else "values"

    def rule(step: _Step) -> None:
        dy, given, attributes = step.gradient("y"), step.buffers, step.operator.attributes
        slots = {} if dense else {"slots": given["slots"]}
        if step.wants(weight):
            inputs = {"x": given["x"], **slots, "dy": dy}
            made = {f"d{weight}": weight}
            step.emit(f"{name}_{of_weight}_gradient", inputs, made, **attributes)
        if step.wants("b"):
            step.emit("bias_gradient", {"dy": dy}, {"db": "b"})
        if step.wants("x"):
            inputs = {weight: given[weight], **slots, "dy": dy}
            step.emit(f"{name}_input_gradient", inputs, {"dx": "x"}, **attributes)

    return rule


def _norm(name: str, *kept: str) -> Rule:
    """Return the rule of a normalisation with attributes that its gradient keeps."""

    def rule(step: _Step) -> None:
        given, attributes = step.buffers, step.operator.attributes
        same = {key: attributes[key] for key in kept}
        inputs: dict[str, int | None] = {it: given[it] for it in ("x", "mean", "scale", "gamma")}
        if attributes.get("relu"):
            inputs["y"] = given["y"]
        made = {"dx": "x", "dgamma": "gamma", "dbeta": "beta"}
        if step.wants("residual"):
            made["dresidual"] = "residual"
        step.emit(f"{name}_gradient", {**inputs, "dy": step.gradient("y")}, made, **same)

    return rule


def _local(name: str, *kept: str) -> Rule:
    """Return the rule of an operator of one input, whose gradient reads some of its buffers."""

    def rule(step: _Step) -> None:
        inputs = {it: step.buffers[it] for it in kept}
        given = {**inputs, "dy": step.gradient("y")}
        step.emit(f"{name}_gradient", given, {"dx": "x"}, **step.operator.attributes)

    return rule


def _add(step: _Step) -> None:
    for argument in ("a", "b"):
        step.give(argument, step.gradient("c"), alone=False)


def _multiply(step: _Step) -> None:
    for argument, other in (("a", "b"), ("b", "a")):
        if step.wants(argument):
            both = {"a": step.gradient("c"), "b": step.buffers[other]}
            step.emit("multiply", both, {"c": argument})


def _reshape(step: _Step) -> None:
    step.emit("reshape", {"x": step.gradient("y")}, {"y": "x"})


def _split(step: _Step) -> None:
    parts = {f"d{it}": step.gradient(it) for it in ("a", "b", "c")}
    step.emit("split_gradient", parts, {"dx": "x"})


def _embedding(step: _Step) -> None:
    given = {"indices": step.buffers["indices"], "dy": step.gradient("y")}
    step.emit("embedding_gradient", given, {"dtable": "table"})


def _positions(step: _Step) -> None:
    dy = step.gradient("y")
    if step.wants("table"):
        step.emit("add_positions_gradient", {"dy": dy}, {"dtable": "table"})
    step.give("x", dy, alone=False)


def _attention(step: _Step) -> None:
    given = {it: step.buffers[it] for it in ("q", "k", "v", "weights")}
    made = {f"d{it}": it for it in ("q", "k", "v")}
    inputs = {**given, "dy": step.gradient("y")}
    step.emit("attention_gradient", inputs, made, **step.operator.attributes)


def _cross_entropy(step: _Step) -> None:
    given = {it: step.buffers[it] for it in ("probabilities", "targets", "share")}
    step.emit("cross_entropy_gradient", given, {"dlogits": "logits"})


_RULES: dict[str, Rule] = {
    "conv2d": _product("conv2d", "w"),
    "linear": _product("linear", "w"),
    "sparse_conv2d": _product("sparse_conv2d", "values"),
    "sparse_linear": _product("sparse_linear", "values"),
    "group_norm": _norm("group_norm", "groups", "relu"),
    "batch_norm": _norm("batch_norm", "relu"),
    "layer_norm": _norm("layer_norm", "axes"),
    "relu": _local("relu", "y"),
    "relu6": _local("relu6", "y"),
    "silu": _local("silu", "x"),
    "gelu": _local("gelu", "x"),
    "hard_swish": _local("hard_swish", "x"),
    "dropout": _local("dropout", "kept"),
    "max_pool2d": _local("max_pool2d", "where"),
    "average_pool2d": _local("average_pool2d"),
    "global_average_pool": _local("global_average_pool"),
    "sequence_mean": _local("sequence_mean"),
    "add": _add,
    "multiply": _multiply,
    "reshape": _reshape,
    "split": _split,
    "embedding": _embedding,
    "add_positions": _positions,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
}
