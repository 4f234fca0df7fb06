"""Every operator that takes planes, beside itself in C order; compute() sees to zero margins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import compute, near, randn
from operator_cases import shapes_of

from mest_fed.runtime.operators import OPERATORS

POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
MAX_POOL = {**POOL, "ceil": True}
#: Attributes of each operator that takes planes but for convolutions; the same draws in any layout.
ATTRIBUTES = {
    "group_norm": [
        {"groups": groups, "epsilon": 1e-5, "relu": relu}
        for groups in (1, 2, 6)
        for relu in (True, False)
    ],
    "group_norm_gradient": [
        {"groups": groups, "relu": relu} for groups in (1, 2, 6) for relu in (True, False)
    ],
    "group_norm_apply": [{"groups": 2, "relu": it} for it in (True, False)],
    "batch_norm_apply": [{"relu": it} for it in (True, False)],
    "batch_norm": [{"epsilon": 1e-5, "momentum": 0.1, "relu": it} for it in (True, False)],
    "batch_norm_gradient": [{"relu": it} for it in (True, False)],
    "batch_norm_inference": [{"epsilon": 1e-5, "relu": it} for it in (True, False)],
    "dropout": [{"probability": 0.3}],
    "dropout_gradient": [{"probability": 0.3}],
    "max_pool2d": [MAX_POOL],
    "max_pool2d_gradient": [MAX_POOL],
    "average_pool2d": [POOL],
    "average_pool2d_gradient": [POOL],
}
ATTRIBUTES["group_norm_gradient_added"] = ATTRIBUTES["group_norm_gradient"]
#: Those whose sums are taken in another order on planes.
SUMS = ("norm", "bias", "global")
NAMES = [name for name, kind in OPERATORS.items() if kind.planes and "conv2d" not in name]
SHAPES = [(2, 6, 5, 7), (3, 6, 8, 8), (2, 6, 1, 1), (1, 6, 16, 16), (2, 6, 19, 17)]


def arrays_of(kind, shape, attributes, *, optional, seed):
    """Draw arguments; return inputs, and shapes or tensors of outputs."""
    missing = kind.optional - {"y"} if attributes.get("relu") else kind.optional
    known = {it: shape for it in kind.planes if optional or it not in missing}
    channels = {"gamma", "beta", "running_mean", "running_variance"}
    known |= {it: shape[1:2] for it in channels if it in kind.inputs}
    known |= {it: shape[1:2] for it in ("dgamma", "dbeta") if it in kind.changes}
    statistics = (shape[0], attributes["groups"]) if "groups" in attributes else shape[1:2]
    known |= {it: statistics for it in ("mean", "scale") if it in kind.inputs}
    pooled = shape
    if "kernel" in attributes:
        forward = OPERATORS[kind.name.removesuffix("_gradient")]
        pooled = shapes_of(forward, {"x": np.empty(shape)}, attributes)["y"]
        known = {it: pooled if it in ("y", "dy") else shape for it in kind.planes}
    known |= {it: pooled for it in ("where", "kept") if it in kind.inputs}
    if "global" in kind.name:
        known |= {it: shape[:2] for it in ("dy",) if it in kind.inputs}
    if "relu" in attributes and "y" in kind.inputs:
        known = {it: size for it, size in known.items() if it != "y" or attributes["relu"]}
    given = {it: randn(*size, seed=seed + i) for i, (it, size) in enumerate(known.items())}
    if "running_variance" in given:
        given["running_variance"] = given["running_variance"].abs()
    for it in ("where", "kept"):
        if it in given:
            given[it] = (given[it] > 0).to(torch.uint8)
    if "seed" in kind.inputs:
        given["seed"] = torch.tensor([seed])
    inputs = {it: given[it] for it in kind.inputs if it in given}
    blank = {it: np.empty(known[it]) for it in kind.outputs if it in known}
    sizes = shapes_of(kind, {**{it: t.numpy() for it, t in inputs.items()}, **blank}, attributes)
    return inputs, {it: given[it] if it in kind.changes else sizes[it] for it in sizes}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data())
def test_planes_hold_what_c_order_holds(name, data):
    kind, draw = OPERATORS[name], data.draw
    shape = draw(st.sampled_from(SHAPES if "batch" not in name else SHAPES[:2] + SHAPES[3:]))
    attributes = draw(st.sampled_from(ATTRIBUTES.get(name, [{}])))
    inputs, outputs = arrays_of(
        kind, shape, attributes, optional=draw(st.booleans()), seed=draw(st.integers(0, 99))
    )
    margins = {it: draw(st.sampled_from([0, 1, 1, 2])) for it in kind.planes}
    if draw(st.booleans()):
        margins = dict.fromkeys(kind.planes, draw(st.integers(1, 3)))
    present = {**inputs, **outputs}
    over = {
        out: it
        for out, it in kind.shares
        if out in present and it in present and margins.get(out, 0) == margins.get(it, 0)
    }
    if len(over) > 1:
        over = dict([draw(st.sampled_from(sorted(over.items())))])
    if not draw(st.booleans()):
        over = {}
    expected = compute(name, inputs, outputs, **attributes)
    found = compute(name, inputs, outputs, over, margins, **attributes)
    for argument in (*kind.outputs, *(it for it in kind.changes if it in kind.inputs)):
        if argument not in present:
            continue
        if any(it in name for it in SUMS):
            near(found[argument], expected[argument])
        else:
            assert torch.equal(found[argument], expected[argument])


def test_a_mean_that_is_large_beside_the_deviation():
    """Sums of squares would lose all of it: 1e4 squared is 1e8, whose last bit is 8."""
    x = 1e4 + randn(2, 4, 8, 8)
    inputs = {"x": x, "gamma": torch.ones(4), "beta": torch.zeros(4)}
    outputs = {"y": (2, 4, 8, 8), "mean": (2, 2), "scale": (2, 2)}
    how = {"groups": 2, "epsilon": 1e-5, "relu": False}
    found = compute("group_norm", inputs, outputs, margins={"x": 1, "y": 1}, **how)
    exact = torch.nn.functional.group_norm(x.double(), 2)
    near(found["y"], exact, 2e-3)  # the last bit of the mean
