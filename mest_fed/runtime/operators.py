"""The table of operators: all that is known of each but its gradient and its implementations.

A line of the table is a signature and what belongs to it. In a signature, ``b?`` may be absent
(buffer -1). Planes are NCHW, tensors in C order; what an operator computes is what torch's of the
same name does. ``reference.py`` is the definition of what the signature leaves open.

=============  ============================================================================
argument       what it holds
=============  ============================================================================
values, slots  active granules, (active, rows) and increasing (active,): ``rows`` consecutive
               output channels at one column of the (out, in * kh * kw) weight,
               slot = strip * columns + column; values past the last channel are zero
scale          1 / sqrt(variance + epsilon), the variance biased
where          place of the maximum within its window, row by row
seed           (1,): word i of SplitMix64 from it, ``mix(seed + (i + 1) * 0x9E3779B97F4A7C15)``,
               drops element i if its upper 24 bits are less than round(probability * 2**24);
               elements are counted from the first group of the batch
rates          (1,): the learning rate of the step
share          (1,): what a row counts in the loss, 1 / rows of the whole batch that count; a row
               whose target is negative does not
step           (1,): steps that were taken before; each parameter has its own
=============  ============================================================================
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mest_fed.runtime import rules
from mest_fed.runtime.shapes import Shapes

#: dtype of the arguments that are not float32.
_DTYPES = {
    "slots": "int32",
    "indices": "int64",
    "targets": "int64",
    "seed": "int64",
    "step": "int64",
    "where": "uint8",
    "kept": "uint8",
}


@dataclass(frozen=True)
class Attribute:
    """What an attribute may be.

    Parameters
    ----------
    kind : type
        ``int``, ``float`` or ``bool``.
    least, most : float
        Bounds, inclusive.
    length : int
        Numbers of a list; 0 for a single one.
    """

    kind: type
    least: float = 0
    most: float = 2**31 - 1
    length: int = 0

    def allows(self, value: object) -> bool:
        """Say whether a value is allowed."""
        if self.length == 0:
            return type(value) is self.kind and self.least <= value <= self.most  # type: ignore[operator]
        single = Attribute(self.kind, self.least, self.most)
        return (
            isinstance(value, tuple)
            and len(value) == self.length
            and all(map(single.allows, value))
        )

    @property
    def allowed(self) -> str:
        """What is allowed, as a phrase."""
        if self.kind is bool:
            return "true or false"
        numbers = "whole numbers" if self.kind is int else "numbers with a point"
        count = f"{self.length} {numbers}" if self.length else numbers.replace("numbers", "number")
        return f"{count} from {self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class Kind:
    """One line of the table.

    Parameters
    ----------
    signature : str
        ``name(inputs) -> outputs``.
    attributes : mapping of str to Attribute
        All of them must be given.
    rule : callable
        Compares the shapes of all arguments, and gives those of outputs. Where it cannot give one
        (the input of a strided convolution), that must be given.
    shares : sequence of (str, str)
        An output and an input whose memory it may be written to, element by element.
    changes : tuple of str
        Inputs that are updated in place, and outputs that are added to.
    is_view : bool
        Whether the output holds the input's bytes, so that both may be one as long as neither
        is changed.
    work : callable
        Multiply-adds of a product, from its shapes; 0 for what is bound by its bytes.
    """

    signature: str
    attributes: Mapping[str, Attribute]
    rule: Callable[[Shapes], None]
    shares: tuple[tuple[str, str], ...] = ()
    changes: tuple[str, ...] = ()
    is_view: bool = False
    work: Callable[[Shapes], int] = field(default=lambda _: 0)

    @cached_property
    def name(self) -> str:
        """Name of the operator."""
        return self.signature.partition("(")[0]

    @cached_property
    def _sides(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        given, _, made = self.signature.partition("(")[2].partition(") ->")
        first, second = (
            [it.strip() for it in side.split(",") if it.strip()] for side in (given, made)
        )
        return tuple(first), tuple(second)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(name.rstrip("?") for name in self._sides[0])

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(name.rstrip("?") for name in self._sides[1])

    @cached_property
    def optional(self) -> frozenset[str]:
        """Arguments that may be absent."""
        every = (*self._sides[0], *self._sides[1])
        return frozenset(name[:-1] for name in every if name.endswith("?"))

    def dtype(self, argument: str) -> str:
        """Return the dtype of an argument."""
        return _DTYPES.get(argument, "float32")


_COUNT, _SIZE = Attribute(int, 1), Attribute(int)
_FLAG, _SHARE, _SMALL = Attribute(bool), Attribute(float, 0, 1), Attribute(float, 0, 1e6)
_STEPS, _EDGES = Attribute(int, 1, length=2), Attribute(int, length=2)
_WINDOW: Mapping[str, Attribute] = {"stride": _STEPS, "padding": _EDGES}
_CONV = {**_WINDOW, "groups": _COUNT}
_SPARSE_CONV = {**_WINDOW, "weight_shape": Attribute(int, 1, length=4), "rows": _COUNT}
_SPARSE_LINEAR = {"weight_shape": Attribute(int, 1, length=2), "rows": _COUNT}
_POOL = {"kernel": _STEPS, **_WINDOW}
_MAX_POOL = {**_POOL, "ceil": _FLAG}
_ATTENTION = {"heads": _COUNT, "causal": _FLAG}


def _activation(name: str, kept: str) -> tuple[Kind, Kind]:
    """Return an elementwise function and its gradient, which needs the input or the output."""
    return (
        Kind(f"{name}(x) -> y", {}, rules.alike("x", "y"), (("y", "x"),)),
        Kind(
            f"{name}_gradient({kept}, dy) -> dx",
            {},
            rules.alike("dy", kept, "dx"),
            (("dx", "dy"), ("dx", kept)),
        ),
    )


_GROUP = {"groups": _COUNT, "epsilon": _SMALL, "relu": _FLAG}
_BATCH = {"epsilon": _SMALL, "momentum": _SHARE, "relu": _FLAG}
_LAYER = {"axes": _COUNT, "epsilon": _SMALL}
_IN_PLACE = (("y", "x"), ("y", "residual"))
_GRADIENT_IN_PLACE = (("dresidual", "dy"), ("dx", "dy"))
_NORM_GRADIENT = "x, y?, mean, scale, gamma, dy) -> dx, dgamma, dbeta, dresidual?"
_SGD = {"weight_decay": _SMALL, "momentum": _SHARE, "nesterov": _FLAG}
_ADAM = {"beta1": _SHARE, "beta2": _SHARE, "epsilon": _SMALL, "weight_decay": _SMALL}

_TABLE = (
    # Products
    Kind(
        "conv2d(x, w, b?) -> y",
        _CONV,
        rules.convolution("x", "y", "w"),
        work=rules.convolution_work("y", "w"),
    ),
    Kind(
        "conv2d_input_gradient(w, dy) -> dx",
        _CONV,
        rules.convolution("dx", "dy", "w"),
        work=rules.convolution_work("dy", "w"),
    ),
    Kind(
        "conv2d_weight_gradient(x, dy) -> dw",
        _CONV,
        rules.convolution("x", "dy", "dw"),
        work=rules.convolution_work("dy", "dw"),
    ),
    Kind("bias_gradient(dy) -> db", {}, rules.bias),
    Kind(
        "sparse_conv2d(x, values, slots, b?) -> y",
        _SPARSE_CONV,
        rules.convolution("x", "y", values="values"),
        work=rules.convolution_work("y", "values"),
    ),
    Kind(
        "sparse_conv2d_input_gradient(values, slots, dy) -> dx",
        _SPARSE_CONV,
        rules.convolution("dx", "dy", values="values"),
        work=rules.convolution_work("dy", "values"),
    ),
    Kind(
        "sparse_conv2d_values_gradient(x, slots, dy) -> dvalues",
        _SPARSE_CONV,
        rules.convolution("x", "dy", values="dvalues"),
        work=rules.convolution_work("dy", "dvalues"),
    ),
    Kind(
        "linear(x, w, b?) -> y", {}, rules.linear("x", "y", "w"), work=rules.linear_work("x", "w")
    ),
    Kind(
        "linear_input_gradient(w, dy) -> dx",
        {},
        rules.linear("dx", "dy", "w"),
        work=rules.linear_work("dy", "w"),
    ),
    Kind(
        "linear_weight_gradient(x, dy) -> dw",
        {},
        rules.linear("x", "dy", "dw"),
        work=rules.linear_work("x", "dw"),
    ),
    Kind(
        "sparse_linear(x, values, slots, b?) -> y",
        _SPARSE_LINEAR,
        rules.linear("x", "y", values="values"),
        work=rules.linear_work("x", "values"),
    ),
    Kind(
        "sparse_linear_input_gradient(values, slots, dy) -> dx",
        _SPARSE_LINEAR,
        rules.linear("dx", "dy", values="values"),
        work=rules.linear_work("dy", "values"),
    ),
    Kind(
        "sparse_linear_values_gradient(x, slots, dy) -> dvalues",
        _SPARSE_LINEAR,
        rules.linear("x", "dy", values="dvalues"),
        work=rules.linear_work("x", "dvalues"),
    ),
    # Normalisation, with the residual addition and the ReLU behind it
    Kind(
        "group_norm(x, gamma, beta, residual?) -> y, mean, scale",
        _GROUP,
        rules.norm(rules.of_groups),
        _IN_PLACE,
    ),
    Kind(
        f"group_norm_gradient({_NORM_GRADIENT}",
        {"groups": _COUNT, "relu": _FLAG},
        rules.norm(rules.of_groups),
        _GRADIENT_IN_PLACE,
    ),
    Kind(
        "batch_norm(x, gamma, beta, residual?, running_mean, running_variance) -> y, mean, scale",
        _BATCH,
        rules.norm(rules.of_batch),
        _IN_PLACE,
        ("running_mean", "running_variance"),
    ),
    Kind(
        f"batch_norm_gradient({_NORM_GRADIENT}",
        {"relu": _FLAG},
        rules.norm(rules.of_batch),
        _GRADIENT_IN_PLACE,
    ),
    Kind(
        "batch_norm_inference(x, gamma, beta, residual?, running_mean, running_variance) -> y",
        {"epsilon": _SMALL, "relu": _FLAG},
        rules.norm_inference,
        _IN_PLACE,
    ),
    Kind("layer_norm(x, gamma, beta) -> y, mean, scale", _LAYER, rules.layer_norm, (("y", "x"),)),
    Kind(
        "layer_norm_gradient(x, mean, scale, gamma, dy) -> dx, dgamma, dbeta",
        {"axes": _COUNT},
        rules.layer_norm,
        (("dx", "dy"),),
    ),
    # Elementwise
    *_activation("relu", "y"),
    *_activation("relu6", "y"),
    *_activation("silu", "x"),
    *_activation("gelu", "x"),
    *_activation("hard_swish", "x"),
    Kind("add(a, b) -> c", {}, rules.alike("a", "b", "c"), (("c", "a"), ("c", "b"))),
    Kind("multiply(a, b) -> c", {}, rules.alike("a", "b", "c"), (("c", "a"), ("c", "b"))),
    Kind("accumulate(a) -> into", {}, rules.alike("a", "into"), changes=("into",)),
    Kind(
        "dropout(x, seed) -> y, kept",
        {"probability": Attribute(float, 0, 0.999)},
        rules.dropout,
        (("y", "x"),),
    ),
    Kind(
        "dropout_gradient(kept, dy) -> dx",
        {"probability": Attribute(float, 0, 0.999)},
        rules.alike("dy", "kept", "dx"),
        (("dx", "dy"),),
    ),
    # Pools and shapes
    Kind("max_pool2d(x) -> y, where", _MAX_POOL, rules.pool("x", "y", "where")),
    Kind("max_pool2d_gradient(where, dy) -> dx", _MAX_POOL, rules.pool("dx", "dy", "where")),
    Kind("average_pool2d(x) -> y", _POOL, rules.pool("x", "y")),
    Kind("average_pool2d_gradient(dy) -> dx", _POOL, rules.pool("dx", "dy")),
    Kind("global_average_pool(x) -> y", {}, rules.global_pool("x", "y")),
    Kind("global_average_pool_gradient(dy) -> dx", {}, rules.global_pool("dx", "dy")),
    Kind("sequence_mean(x) -> y", {}, rules.sequence_mean("x", "y")),
    Kind("sequence_mean_gradient(dy) -> dx", {}, rules.sequence_mean("dx", "dy")),
    Kind("reshape(x) -> y", {}, rules.reshape, (("y", "x"),), is_view=True),
    Kind("split(x) -> a, b, c", {}, rules.split("x", ("a", "b", "c"))),
    Kind("split_gradient(da, db, dc) -> dx", {}, rules.split("dx", ("da", "db", "dc"))),
    # Tokens
    Kind("embedding(indices, table) -> y", {}, rules.embedding("y", "table")),
    Kind("embedding_gradient(indices, dy) -> dtable", {}, rules.embedding("dy", "dtable")),
    Kind("add_positions(x, table) -> y", {}, rules.positions, (("y", "x"),)),
    Kind("add_positions_gradient(dy) -> dtable", {}, rules.positions),
    Kind(
        "attention(q, k, v) -> y, weights",
        _ATTENTION,
        rules.attention,
        work=rules.attention_work(2),
    ),
    Kind(
        "attention_gradient(q, k, v, weights, dy) -> dq, dk, dv",
        _ATTENTION,
        rules.attention,
        work=rules.attention_work(4),
    ),
    # Loss and update
    Kind(
        "cross_entropy(logits, targets, share) -> loss, probabilities",
        {},
        rules.cross_entropy("logits", "probabilities"),
        (("probabilities", "logits"),),
    ),
    Kind(
        "cross_entropy_gradient(probabilities, targets, share) -> dlogits",
        {},
        rules.cross_entropy("probabilities", "dlogits"),
        (("dlogits", "probabilities"),),
    ),
    Kind(
        "sgd(gradient, rates, parameter, momentum_buffer?) ->",
        _SGD,
        rules.update,
        changes=("parameter", "momentum_buffer"),
    ),
    Kind(
        "adam(gradient, rates, parameter, first, second, step) ->",
        {**_ADAM, "decoupled": _FLAG},
        rules.update,
        changes=("parameter", "first", "second", "step"),
    ),
)

#: Name -> its line of the table.
OPERATORS: Mapping[str, Kind] = {kind.name: kind for kind in _TABLE}

#: Types that an operator takes; buffers of the others that the format names have no use yet.
TAKEN = frozenset(
    kind.dtype(argument) for kind in _TABLE for argument in (*kind.inputs, *kind.outputs)
)
