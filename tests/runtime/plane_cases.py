"""Channels that are chosen, joined, weighted, and pixels that are repeated: small cases."""

import numpy as np
import torch
from drawn import Case, Draw, Makes


def some_channels(draw: Draw, channels: int) -> np.ndarray:
    """Draw increasing channels with -1s behind them."""
    count = draw.size(1, channels)
    slots = np.sort(draw.rng.permutation(channels)[:count]).astype(np.int32)
    slots[draw.size(0, count) if draw.flag() else count :] = -1
    return slots


def sides(draw: Draw, least: int = 0) -> list[int]:
    return [draw.size(1, 3) for _ in range(draw.size(least, 2))]


def take_channels(draw: Draw) -> Case:
    x = draw.normal(draw.size(1, 3), draw.size(1, 5), *sides(draw))

    def function(x, slots):
        held = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        return {"y": held[:, slots.long()]}  # -1 is the last, of zeros

    return Case({"x": x, "slots": some_channels(draw, x.shape[1])}, function)


def place_channels(draw: Draw) -> Case:
    channels = draw.size(1, 5)
    slots = some_channels(draw, channels)
    inputs = {"x": draw.normal(draw.size(1, 3), len(slots), *sides(draw)), "slots": slots}
    if draw.flag():
        inputs["b"] = draw.normal(channels)

    def function(x, slots, b=None):
        y = torch.zeros(len(x), channels + 1, *x.shape[2:], dtype=x.dtype)
        y = y.index_add(1, slots.long() % (channels + 1), x)[:, :channels]
        return {"y": y if b is None else y + b.view(-1, *[1] * (x.dim() - 2))}

    return Case(inputs, function, {"channels": channels})


def concat(draw: Draw) -> Case:
    rest, rows = sides(draw), draw.size(1, 3)
    inputs = {it: draw.normal(rows, draw.size(1, 3), *rest) for it in "ab"}
    return Case(inputs, lambda a, b: {"c": torch.cat([a, b], 1)})


def multiply_channels(draw: Draw) -> Case:
    x = draw.normal(draw.size(1, 3), draw.size(1, 3), *sides(draw, 1))

    def function(x, s):
        return {"y": x * s.view(*s.shape, *[1] * (x.dim() - 2))}

    return Case({"x": x, "s": draw.normal(*x.shape[:2])}, function)


def upsample_nearest(draw: Draw) -> Case:
    factors = draw.size(1, 3), draw.size(1, 3)
    x = draw.normal(*(draw.size(1, 3) for _ in range(4)))

    def function(x):
        up = torch.nn.Upsample(scale_factor=tuple(map(float, factors)), mode="nearest")
        return {"y": up(x)}

    return Case({"x": x}, function, {"factors": factors})


CASES: dict[str, Makes] = {
    "take_channels": take_channels,
    "place_channels": place_channels,
    "concat": concat,
    "multiply_channels": multiply_channels,
    "upsample_nearest": upsample_nearest,
}
