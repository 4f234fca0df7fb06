"""Further functions of single elements, and the softmax: small cases beside what torch computes."""

import torch
from drawn import Case, Draw, Makes
from elementwise_cases import activation, binary
from torch.nn import functional as F


def leaky_relu(draw: Draw) -> Case:
    slope = draw.size(0, 4) / 4
    return Case({"x": draw.normal(3, 4)}, lambda x: {"y": F.leaky_relu(x, slope)}, {"slope": slope})


def elu(draw: Draw) -> Case:
    alpha = draw.size(0, 4) / 2
    x = 2 * draw.normal(3, 4)
    return Case({"x": x}, lambda x: {"y": F.elu(x, alpha)}, {"alpha": alpha})


def softmax(draw: Draw) -> Case:
    lead = [draw.size(1, 3) for _ in range(draw.size(0, 2))]
    x = 3 * draw.normal(*lead, draw.size(1, 5))
    return Case({"x": x}, lambda x: {"y": x.softmax(-1)})


def scale(draw: Draw) -> Case:
    factor, offset = float(draw.rng.normal()), float(draw.size(-2, 2))
    how = {"factor": factor, "offset": offset}
    return Case({"x": draw.normal(3, 4)}, lambda x: {"y": factor * x + offset}, how)


CASES: dict[str, Makes] = {
    "sigmoid": activation(torch.sigmoid),
    "hard_sigmoid": activation(
        lambda x: F.relu6(x + 3) / 6
    ),  # torch's has a slope of single precision
    "tanh": activation(torch.tanh),
    "leaky_relu": leaky_relu,
    "elu": elu,
    "softmax": softmax,
    "scale": scale,
    "subtract": binary(torch.sub),
}
