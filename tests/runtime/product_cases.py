"""Convolutions and linear maps: small cases beside what torch computes."""

from typing import Any

import numpy as np
import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F

from mest_fed.nn import slots as at_slots
from mest_fed.sparsity.schemes import Block


def window(draw: Draw) -> dict[str, Any]:
    return {
        "stride": (draw.size(1, 2), draw.size(1, 3)),
        "padding": (draw.size(0, 1), draw.size(0, 2)),
    }


def conv2d(draw: Draw) -> Case:
    groups, how = draw.size(1, 2), window(draw)
    kernel = draw.size(1, 3), draw.size(1, 3)
    inputs = {
        "x": draw.normal(
            draw.size(1, 2), groups * draw.size(1, 2), *(draw.size(3, 5), draw.size(3, 5))
        ),
    }
    each = inputs["x"].shape[1] // groups
    inputs["w"] = draw.normal(groups * draw.size(1, 3), each, *kernel)
    if draw.flag():
        inputs["b"] = draw.normal(len(inputs["w"]))
    return Case(
        inputs,
        lambda x, w, b=None: {"y": F.conv2d(x, w, b, how["stride"], how["padding"], 1, groups)},
        {**how, "groups": groups},
    )


def granules(draw: Draw, shape: tuple[int, ...]) -> tuple[Block, np.ndarray]:
    layout = Block(shape, draw.size(1, 4))
    count = draw.size(1, layout.num_granules)
    slots = np.sort(draw.rng.permutation(layout.num_granules)[:count]).astype(np.int32)
    slots[draw.size(0, count) if draw.flag() else count :] = -1  # capacity that is not used
    return layout, slots


def values_of(draw: Draw, layout: Block, slots: np.ndarray) -> np.ndarray:
    return gathered(layout, draw.normal(*layout.shape), slots)


def gathered(layout: Block, dense: np.ndarray, slots: np.ndarray) -> np.ndarray:
    values, active = np.zeros((len(slots), layout.rows)), slots[slots >= 0]
    values[: len(active)] = layout.gather(dense, active)
    return values


def scattered(layout: Block, values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    active = slots >= 0
    return at_slots.scattered(layout, values[active], slots[active])


def sparse_conv2d(draw: Draw) -> Case:
    how = window(draw)
    shape = (draw.size(1, 6), draw.size(1, 3), draw.size(1, 3), draw.size(1, 3))
    layout, slots = granules(draw, shape)
    inputs = {
        "x": draw.normal(draw.size(1, 2), shape[1], draw.size(3, 5), draw.size(3, 5)),
        "values": values_of(draw, layout, slots),
        "slots": slots,
    }
    if draw.flag():
        inputs["b"] = draw.normal(shape[0])

    def function(x, values, slots, b=None):
        return {
            "y": F.conv2d(x, scattered(layout, values, slots), b, how["stride"], how["padding"])
        }

    return Case(inputs, function, {**how, "weight_shape": shape, "rows": layout.rows})


def pooled(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what torch makes of the outputs of a convolution, and where the maxima stood."""
    y, at = F.max_pool2d(torch.relu(z), 2, return_indices=True)
    rows, columns = at // z.shape[3] % 2, at % z.shape[3] % 2
    return {"y": y, "where": torch.where(y > 0, 2 * rows + columns, 4)}


def conv2d_relu_pool(draw: Draw) -> Case:
    """Few numbers: equal maxima and shut windows occur."""
    padding, kernel = (draw.size(0, 2), draw.size(0, 1)), (draw.size(1, 3), draw.size(1, 3))
    inputs = {"x": draw.halves(draw.size(1, 3), draw.size(1, 5), draw.size(4, 9), draw.size(4, 20))}
    inputs["w"] = draw.rng.integers(-2, 2, (draw.size(1, 9), inputs["x"].shape[1], *kernel)) * 1.0
    if draw.flag():
        inputs["b"] = draw.halves(len(inputs["w"]))

    def function(x, w, b=None):
        return pooled(F.conv2d(x, w, b, 1, padding))

    return Case(inputs, function, {"stride": (1, 1), "padding": padding, "groups": 1})


def sparse_conv2d_relu_pool(draw: Draw) -> Case:
    case = conv2d_relu_pool(draw)
    w, padding = case.inputs.pop("w"), case.attributes["padding"]
    layout, slots = granules(draw, w.shape)
    values = gathered(layout, w, slots)

    def function(x, values, slots, b=None):
        return pooled(F.conv2d(x, scattered(layout, values, slots), b, 1, padding))

    how = {"stride": (1, 1), "padding": padding, "weight_shape": w.shape, "rows": layout.rows}
    return Case({**case.inputs, "values": values, "slots": slots}, function, how)


def linear(draw: Draw) -> Case:
    rows, features, outputs = (draw.size(1, 4) for _ in range(3))
    inputs = {"x": draw.normal(rows, features), "w": draw.normal(outputs, features)}
    if draw.flag():
        inputs["b"] = draw.normal(outputs)
    return Case(inputs, lambda x, w, b=None: {"y": F.linear(x, w, b)})


def sparse_linear(draw: Draw) -> Case:
    shape = (draw.size(1, 6), draw.size(1, 4))
    layout, slots = granules(draw, shape)
    inputs = {
        "x": draw.normal(draw.size(1, 3), shape[1]),
        "values": values_of(draw, layout, slots),
        "slots": slots,
    }
    if draw.flag():
        inputs["b"] = draw.normal(shape[0])

    def function(x, values, slots, b=None):
        return {"y": F.linear(x, scattered(layout, values, slots), b)}

    return Case(inputs, function, {"weight_shape": shape, "rows": layout.rows})


CASES: dict[str, Makes] = {
    "conv2d": conv2d,
    "sparse_conv2d": sparse_conv2d,
    "conv2d_relu_pool": conv2d_relu_pool,
    "sparse_conv2d_relu_pool": sparse_conv2d_relu_pool,
    "linear": linear,
    "sparse_linear": sparse_linear,
}
