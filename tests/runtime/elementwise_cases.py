"""Functions of single elements: small cases beside what torch computes."""

from collections.abc import Callable

import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F


def activation(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        x = draw.halves(3, 4) if draw.flag() else 3 * draw.normal(2, 5)
        return Case({"x": x}, lambda x: {"y": function(x)})

    return case


def binary(function: Callable[..., torch.Tensor]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = draw.size(1, 3), draw.size(1, 3)
        inputs = {"a": draw.normal(*shape), "b": draw.normal(*shape)}
        return Case(inputs, lambda a, b: {"c": function(a, b)})

    return case


def accumulate(draw: Draw) -> Case:
    inputs = {"a": draw.normal(2, 3), "into": draw.normal(2, 3)}
    return Case(inputs, lambda a, into: {"into": into + a})


def mixed(seed: int, count: int) -> list[int]:
    """SplitMix64 in Python's own integers."""
    found, most = [], 2**64 - 1
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & most
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & most
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & most
        found.append(z ^ (z >> 31))
    return found


def dropout(draw: Draw) -> Case:
    share, x = draw.size(0, 9) / 10, draw.normal(4, 6)
    seed = draw.rng.integers(-(2**63), 2**63, size=1)
    least = int(share * 2**24 + 0.5)
    kept = torch.tensor([word >> 40 >= least for word in mixed(int(seed[0]) % 2**64, 24)]).view(
        4, 6
    )

    def function(x, seed):
        return {"y": x * kept / (1 - share), "kept": kept.to(torch.uint8)}

    return Case({"x": x, "seed": seed}, function, {"probability": share})


CASES: dict[str, Makes] = {
    "relu": activation(torch.relu),
    "relu6": activation(F.relu6),
    "silu": activation(F.silu),
    "gelu": activation(F.gelu),
    "hard_swish": activation(F.hardswish),
    "add": binary(torch.add),
    "multiply": binary(torch.mul),
    "accumulate": accumulate,
    "dropout": dropout,
}
