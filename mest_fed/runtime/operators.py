"""The table of operators: all that is known of each but its gradient and its implementations.

A line of the table is a signature and what belongs to it. In a signature, ``b?`` may be absent
(buffer -1). Planes are NCHW, tensors in C order; what an operator computes is what torch's of the
same name does. ``reference.py`` is the definition of what the signature leaves open.

=============  ============================================================================
argument       what it holds
=============  ============================================================================
values, slots  granules, (capacity, rows) and (capacity,): ``rows`` consecutive output channels at
               one column of the (out, in * kh * kw) weight, slot = strip * columns + column.
               Slots of active granules increase, behind them all are -1. Values of those, and
               past the last channel, are zero, and so is their gradient
scale          1 / sqrt(variance + epsilon), the variance biased
more           the rest of dy, in a norm's gradient: the two are added
where          place of the maximum within its window, row by row; behind a ReLU 4 where no value
               is above zero
seed           (1,): word i of SplitMix64 from it, ``mix(seed + (i + 1) * 0x9E3779B97F4A7C15)``,
               drops element i if its upper 24 bits are less than round(probability * 2**24);
               elements are counted from the first group of the batch
rates          (1,): the learning rate of the step
share          (1,): what a row counts in the loss, 1 / rows of the whole batch that count; a row
               whose target is negative does not
step           (1,): steps that were taken before; each parameter has its own
=============  ============================================================================
"""

from collections.abc import Mapping
from dataclasses import replace

from mest_fed.runtime import (
    operators_elementwise,
    operators_planes,
    operators_sequences,
    operators_training,
    rules,
)
from mest_fed.runtime.kind import Attribute, Kind

_COUNT, _SIZE = Attribute(int, 1), Attribute(int)
_FLAG, _SHARE, _SMALL = Attribute(bool), Attribute(float, 0, 1), Attribute(float, 0, 1e6)
_STEPS, _EDGES = Attribute(int, 1, length=2), Attribute(int, length=2)
_WINDOW: Mapping[str, Attribute] = {"stride": _STEPS, "padding": _EDGES}
_CONV = {**_WINDOW, "groups": _COUNT}
_SPARSE_CONV = {**_WINDOW, "weight_shape": Attribute(int, 1, length=4), "rows": _COUNT}
_SPARSE_LINEAR = {"weight_shape": Attribute(int, 1, length=2), "rows": _COUNT}
_POOL = {"kernel": _STEPS, **_WINDOW}
_MAX_POOL = {**_POOL, "ceil": _FLAG}
_GROUP = {"groups": _COUNT, "epsilon": _SMALL, "relu": _FLAG}
_BATCH = {"epsilon": _SMALL, "momentum": _SHARE, "relu": _FLAG}
_LAYER = {"axes": _COUNT, "epsilon": _SMALL}
_IN_PLACE = (("y", "x"), ("y", "residual"))
_GRADIENT_IN_PLACE = tuple((made, it) for it in ("dy", "more") for made in ("dresidual", "dx"))
_NORM_GRADIENT = "x, y?, mean, scale, gamma, dy, more?) -> dx, dgamma, dbeta, dresidual?"
_NORM_APPLY = "x, mean, scale, gamma, beta, residual?) -> y"
_NORM_PLANES = ("x", "residual", "y")
_NORM_GRADIENT_BF16 = ("x", "y", "dx")
_NORM_GRADIENT_PLANES = ("x", "y", "dy", "more", "dx", "dresidual")

_TABLE = (
    # Products
    Kind(
        "conv2d(x, w, b?) -> y",
        _CONV,
        rules.convolution("x", "y", "w"),
        work=rules.convolution_work("y", "w"),
        planes=("x", "y"),
        bf16=("x", "y"),
        on_planes=rules.slides_on_planes("w"),
    ),
    Kind(
        "conv2d_input_gradient(w, dy) -> dx",
        _CONV,
        rules.convolution("dx", "dy", "w"),
        work=rules.convolution_work("dy", "w"),
        planes=("dy", "dx"),
        bf16=("dy",),
        on_planes=rules.slides_on_planes("w"),
    ),
    Kind(
        "conv2d_weight_gradient(x, dy) -> dw",
        _CONV,
        rules.convolution("x", "dy", "dw"),
        work=rules.convolution_work("dy", "dw"),
        planes=("x", "dy"),
        bf16=("x", "dy"),
        on_planes=rules.slides_on_planes("dw"),
    ),
    Kind("bias_gradient(dy) -> db", {}, rules.bias, planes=("dy",)),
    Kind(
        "sparse_conv2d(x, values, slots, b?) -> y",
        _SPARSE_CONV,
        rules.convolution("x", "y", values="values"),
        work=rules.convolution_work("y", "values"),
        planes=("x", "y"),
        bf16=("x", "y"),
        on_planes=rules.slides_on_planes(),
    ),
    Kind(
        "sparse_conv2d_input_gradient(values, slots, dy) -> dx",
        _SPARSE_CONV,
        rules.convolution("dx", "dy", values="values"),
        work=rules.convolution_work("dy", "values"),
        planes=("dy", "dx"),
        bf16=("dy",),
        on_planes=rules.slides_on_planes(),
    ),
    Kind(
        "sparse_conv2d_values_gradient(x, slots, dy) -> dvalues",
        _SPARSE_CONV,
        rules.convolution("x", "dy", values="dvalues"),
        work=rules.convolution_work("dy", "dvalues"),
        planes=("x", "dy"),
        bf16=("x", "dy"),
        on_planes=rules.slides_on_planes(),
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
        planes=_NORM_PLANES,
        bf16=_NORM_PLANES,
    ),
    Kind(
        f"group_norm_gradient({_NORM_GRADIENT}",
        {"groups": _COUNT, "relu": _FLAG},
        rules.norm(rules.of_groups),
        _GRADIENT_IN_PLACE,
        planes=_NORM_GRADIENT_PLANES,
        bf16=_NORM_GRADIENT_BF16,
    ),
    Kind(
        "batch_norm(x, gamma, beta, residual?, running_mean, running_variance) -> y, mean, scale",
        _BATCH,
        rules.norm(rules.of_batch),
        _IN_PLACE,
        ("running_mean", "running_variance"),
        planes=_NORM_PLANES,
        bf16=_NORM_PLANES,
    ),
    Kind(
        f"batch_norm_gradient({_NORM_GRADIENT}",
        {"relu": _FLAG},
        rules.norm(rules.of_batch),
        _GRADIENT_IN_PLACE,
        planes=_NORM_GRADIENT_PLANES,
        bf16=_NORM_GRADIENT_BF16,
    ),
    *(
        Kind(
            f"{name}_norm_apply({_NORM_APPLY}",
            attributes,
            rules.norm(statistics),
            _IN_PLACE,
            planes=_NORM_PLANES,
            bf16=_NORM_PLANES,
        )
        for name, attributes, statistics in (
            ("group", {"groups": _COUNT, "relu": _FLAG}, rules.of_groups),
            ("batch", {"relu": _FLAG}, rules.of_batch),
        )
    ),
    Kind(
        "batch_norm_inference(x, gamma, beta, residual?, running_mean, running_variance) -> y",
        {"epsilon": _SMALL, "relu": _FLAG},
        rules.norm_inference,
        _IN_PLACE,
        planes=_NORM_PLANES,
    ),
    Kind("layer_norm(x, gamma, beta) -> y, mean, scale", _LAYER, rules.layer_norm, (("y", "x"),)),
    Kind(
        "layer_norm_gradient(x, mean, scale, gamma, dy) -> dx, dgamma, dbeta",
        {"axes": _COUNT},
        rules.layer_norm,
        (("dx", "dy"),),
    ),
    # Elementwise
    *(
        Kind(
            f"{name}(a, b) -> c",
            {},
            rules.alike("a", "b", "c"),
            (("c", "a"), ("c", "b")),
            planes=("a", "b", "c"),
        )
        for name in ("add", "multiply")
    ),
    Kind(
        "accumulate(a) -> into",
        {},
        rules.alike("a", "into"),
        changes=("into",),
        planes=("a", "into"),
    ),
    # From one layout to another, and from one type to another
    Kind(
        "copy(x) -> y",
        {},
        rules.alike("x", "y"),
        (("y", "x"),),
        planes=("x", "y"),
        bf16=("x", "y"),
        converts=True,
    ),
    Kind(
        "dropout(x, seed) -> y, kept",
        {"probability": Attribute(float, 0, 0.999)},
        rules.dropout,
        (("y", "x"),),
        planes=("x", "y"),
    ),
    Kind(
        "dropout_gradient(kept, dy) -> dx",
        {"probability": Attribute(float, 0, 0.999)},
        rules.alike("dy", "kept", "dx"),
        (("dx", "dy"),),
        planes=("dy", "dx"),
    ),
    # Pools and shapes
    Kind("max_pool2d(x) -> y, where", _MAX_POOL, rules.pool("x", "y", "where"), planes=("x", "y")),
    Kind(
        "max_pool2d_gradient(where, dy) -> dx",
        _MAX_POOL,
        rules.pool("dx", "dy", "where"),
        planes=("dy", "dx"),
    ),
    Kind("average_pool2d(x) -> y", _POOL, rules.pool("x", "y"), planes=("x", "y")),
    Kind("average_pool2d_gradient(dy) -> dx", _POOL, rules.pool("dx", "dy"), planes=("dy", "dx")),
    Kind(
        "global_average_pool(x) -> y",
        {},
        rules.global_pool("x", "y"),
        planes=("x",),
        bf16=("x",),
    ),
    Kind(
        "global_average_pool_gradient(dy) -> dx", {}, rules.global_pool("dx", "dy"), planes=("dx",)
    ),
    Kind("sequence_mean(x) -> y", {}, rules.sequence_mean("x", "y")),
    Kind("sequence_mean_gradient(dy) -> dx", {}, rules.sequence_mean("dx", "dy")),
    Kind("reshape(x) -> y", {}, rules.reshape, (("y", "x"),), is_view=True),
    Kind("split(x) -> a, b, c", {}, rules.split("x", ("a", "b", "c"))),
    Kind("split_gradient(da, db, dc) -> dx", {}, rules.split("dx", ("da", "db", "dc"))),
)

#: Operator of gradients -> outputs to which another form of it adds, instead of writing them.
_ADDS = {
    "conv2d_input_gradient": ("dx",),
    "conv2d_weight_gradient": ("dw",),
    "sparse_conv2d_input_gradient": ("dx",),
    "sparse_conv2d_values_gradient": ("dvalues",),
    "group_norm_gradient": ("dgamma", "dbeta"),
}


def _added_name(name: str) -> str:
    return f"{name}_added"


def _added(kind: Kind) -> Kind:
    """Return the form of a line of the table that adds to outputs."""
    signature = kind.signature.replace(kind.name, _added_name(kind.name), 1)
    return replace(kind, signature=signature, changes=_ADDS[kind.name])


_EVERY = (
    *_TABLE,
    *(_added(it) for it in _TABLE if it.name in _ADDS),
    *operators_elementwise.TABLE,
    *operators_planes.TABLE,
    *operators_sequences.TABLE,
    *operators_training.TABLE,
)

#: Name -> its line of the table.
OPERATORS: Mapping[str, Kind] = {kind.name: kind for kind in _EVERY}


def adding_to(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the operator that adds to outputs of another instead of writing them, and which.

    Parameters
    ----------
    name : str
        Of the operator that writes them.

    Returns
    -------
    tuple or None
        Its name, and the outputs; None if there is no such operator.
    """
    return (_added_name(name), _ADDS[name]) if name in _ADDS else None


#: Types that an operator takes; buffers of the others that the format names have no use yet.
TAKEN = frozenset(
    dtype
    for kind in _EVERY
    for argument in (*kind.inputs, *kind.outputs)
    for dtype in kind.dtypes_of(argument)
)
