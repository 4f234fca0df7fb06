"""Pools and shapes: small cases beside what torch computes."""

from typing import Any

import numpy as np
import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F


def pool(draw: Draw) -> tuple[np.ndarray, dict[str, Any]]:
    kernel = draw.size(1, 3), draw.size(1, 3)
    padding = draw.size(0, kernel[0] // 2), draw.size(0, kernel[1] // 2)
    how = {"kernel": kernel, "stride": (draw.size(1, 3), draw.size(1, 2)), "padding": padding}
    return draw.halves(draw.size(1, 2), draw.size(1, 2), draw.size(3, 6), draw.size(3, 6)), how


def max_pool2d(draw: Draw) -> Case:
    x, how = pool(draw)
    ceil = draw.flag()
    settings = (how["kernel"], how["stride"], how["padding"], 1, ceil)

    def function(x):
        y, at = F.max_pool2d(x, *settings, return_indices=True)
        rows, columns = at // x.shape[3], at % x.shape[3]
        first = torch.arange(y.shape[2])[:, None] * how["stride"][0] - how["padding"][0]
        left = torch.arange(y.shape[3]) * how["stride"][1] - how["padding"][1]
        return {"y": y, "where": (rows - first) * how["kernel"][1] + columns - left}

    return Case({"x": x}, function, {**how, "ceil": ceil})


def average_pool2d(draw: Draw) -> Case:
    x, how = pool(draw)
    settings = (how["kernel"], how["stride"], how["padding"])
    return Case({"x": x}, lambda x: {"y": F.avg_pool2d(x, *settings)}, how)


def global_average_pool(draw: Draw) -> Case:
    x = draw.normal(2, 3, *(draw.size(1, 3) for _ in range(draw.size(1, 2))))
    return Case({"x": x}, lambda x: {"y": x.flatten(2).mean(2)})


def sequence_mean(draw: Draw) -> Case:
    return Case({"x": draw.normal(2, draw.size(1, 4), 3)}, lambda x: {"y": x.mean(1)})


def reshape(draw: Draw) -> Case:
    return Case({"x": draw.normal(4, 3)}, lambda x: {"y": x.view(2, 6)}, shapes={"y": (2, 6)})


def split(draw: Draw) -> Case:
    x = draw.normal(2, 3 * draw.size(1, 3))
    return Case({"x": x}, lambda x: dict(zip("abc", x.chunk(3, -1), strict=True)))


CASES: dict[str, Makes] = {
    "max_pool2d": max_pool2d,
    "average_pool2d": average_pool2d,
    "global_average_pool": global_average_pool,
    "sequence_mean": sequence_mean,
    "reshape": reshape,
    "split": split,
}
