"""Which operators make the gradients of an operator's inputs from those of its outputs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mest_fed.runtime.gradients import Step

Rule = Callable[["Step"], None]


def _product(name: str, weight: str) -> Rule:
    """Return the rule of a product: gradients of input, weight or values, and bias."""
    dense = weight == "w"
    of_weight = "weight" if dense else "values"

    def rule(step: "Step") -> None:
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

    def rule(step: "Step") -> None:
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

    def rule(step: "Step") -> None:
        inputs = {it: step.buffers[it] for it in kept}
        given = {**inputs, "dy": step.gradient("y")}
        step.emit(f"{name}_gradient", given, {"dx": "x"}, **step.operator.attributes)

    return rule


def _add(step: "Step") -> None:
    for argument in ("a", "b"):
        step.give(argument, step.gradient("c"), alone=False)


def _multiply(step: "Step") -> None:
    for argument, other in (("a", "b"), ("b", "a")):
        if step.wants(argument):
            both = {"a": step.gradient("c"), "b": step.buffers[other]}
            step.emit("multiply", both, {"c": argument})


def _reshape(step: "Step") -> None:
    step.emit("reshape", {"x": step.gradient("y")}, {"y": "x"})


def _split(step: "Step") -> None:
    parts = {f"d{it}": step.gradient(it) for it in ("a", "b", "c")}
    step.emit("split_gradient", parts, {"dx": "x"})


def _embedding(step: "Step") -> None:
    given = {"indices": step.buffers["indices"], "dy": step.gradient("y")}
    step.emit("embedding_gradient", given, {"dtable": "table"})


def _positions(step: "Step") -> None:
    dy = step.gradient("y")
    if step.wants("table"):
        step.emit("add_positions_gradient", {"dy": dy}, {"dtable": "table"})
    step.give("x", dy, alone=False)


def _attention(step: "Step") -> None:
    given = {it: step.buffers[it] for it in ("q", "k", "v", "weights")}
    made = {f"d{it}": it for it in ("q", "k", "v")}
    inputs = {**given, "dy": step.gradient("y")}
    step.emit("attention_gradient", inputs, made, **step.operator.attributes)


def _subtract(step: "Step") -> None:
    step.give("a", step.gradient("c"), alone=False)
    if step.wants("b"):
        step.emit("scale", {"x": step.gradient("c")}, {"y": "b"}, factor=-1.0, offset=0.0)


def _scale(step: "Step") -> None:
    how = {**step.operator.attributes, "offset": 0.0}
    step.emit("scale", {"x": step.gradient("y")}, {"y": "x"}, **how)


def _transpose(step: "Step") -> None:
    step.emit("transpose", {"x": step.gradient("y")}, {"y": "x"}, **step.operator.attributes)


def _take_channels(step: "Step") -> None:
    given = {"x": step.gradient("y"), "slots": step.buffers["slots"]}
    step.emit("place_channels", given, {"y": "x"}, channels=step.shape("x")[1])


def _place_channels(step: "Step") -> None:
    dy = step.gradient("y")
    if step.wants("b"):
        step.emit("bias_gradient", {"dy": dy}, {"db": "b"})
    if step.wants("x"):
        step.emit("take_channels", {"x": dy, "slots": step.buffers["slots"]}, {"y": "x"})


def _concat(step: "Step") -> None:
    step.emit("concat_gradient", {"dc": step.gradient("c")}, {"da": "a", "db": "b"})


def _multiply_channels(step: "Step") -> None:
    given = {"x": step.buffers["x"], "s": step.buffers["s"], "dy": step.gradient("y")}
    step.emit("multiply_channels_gradient", given, {"dx": "x", "ds": "s"})


def _recurrent(name: str, kept: str) -> Rule:
    """Return the rule of a recurrent layer that keeps its gates and one thing more."""

    def rule(step: "Step") -> None:
        given = {it: step.buffers[it] for it in ("u", "y", "gates", kept)}
        made = {"dx": "x", "du": "u"}
        if step.wants("bias"):
            made["dbias"] = "bias"
        step.emit(f"{name}_gradient", {**given, "dy": step.gradient("y")}, made)

    return rule


def _loss(name: str, outputs: str) -> Rule:
    """Return the rule of a loss of numbers; its own gradient is one."""

    def rule(step: "Step") -> None:
        given = {it: step.buffers[it] for it in (outputs, "targets", "share")}
        step.emit(f"{name}_gradient", given, {f"d{outputs}": outputs})

    return rule


def _cross_entropy(step: "Step") -> None:
    given = {it: step.buffers[it] for it in ("probabilities", "targets", "share")}
    step.emit("cross_entropy_gradient", given, {"dlogits": "logits"})


#: Operator -> its rule.
RULES: dict[str, Rule] = {
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
    "sigmoid": _local("sigmoid", "y"),
    "hard_sigmoid": _local("hard_sigmoid", "y"),
    "tanh": _local("tanh", "y"),
    "leaky_relu": _local("leaky_relu", "y"),
    "elu": _local("elu", "y"),
    "softmax": _local("softmax", "y"),
    "scale": _scale,
    "subtract": _subtract,
    "transpose": _transpose,
    "select": _local("select"),
    "upsample_nearest": _local("upsample_nearest"),
    "take_channels": _take_channels,
    "place_channels": _place_channels,
    "concat": _concat,
    "multiply_channels": _multiply_channels,
    "lstm": _recurrent("lstm", "cells"),
    "gru": _recurrent("gru", "candidate"),
    **{it: _loss(it, "outputs") for it in ("squared_error", "absolute_error", "huber")},
    "binary_cross_entropy": _loss("binary_cross_entropy", "logits"),
}
