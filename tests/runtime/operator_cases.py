"""Small cases of every operator, each beside what torch computes for it in float64."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.shapes import Shapes
from mest_fed.sparsity.schemes import Block


class Draw:
    """Sizes and numbers of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def size(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def flag(self) -> bool:
        return bool(self.rng.integers(2))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def halves(self, *shape: int) -> np.ndarray:
        """Multiples of 1/2, so that kinks and equal maxima occur."""
        return self.rng.integers(-8, 17, size=shape) / 2


@dataclass(frozen=True)
class Case:
    """Inputs of one operator, and torch's function of them.

    ``function`` takes tensors by name and returns outputs by name; ``states`` are what inputs that
    are updated become.
    """

    inputs: dict[str, np.ndarray]
    function: Callable[..., dict[str, torch.Tensor]]
    attributes: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


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
    return layout, slots


def values_of(draw: Draw, layout: Block, slots: np.ndarray) -> np.ndarray:
    dense = torch.from_numpy(draw.normal(*layout.shape))
    return layout.gather(dense, torch.from_numpy(slots)).numpy()


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
        return {"y": F.conv2d(x, layout.scatter(values, slots), b, how["stride"], how["padding"])}

    return Case(inputs, function, {**how, "weight_shape": shape, "rows": layout.rows})


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
        return {"y": F.linear(x, layout.scatter(values, slots), b)}

    return Case(inputs, function, {"weight_shape": shape, "rows": layout.rows})


def planes(draw: Draw, channels: int) -> tuple[dict[str, np.ndarray], bool]:
    sides = [draw.size(1, 3) for _ in range(draw.size(0, 2))]
    x = draw.normal(draw.size(2, 3), channels, *sides)
    inputs = {"x": x, "gamma": draw.normal(channels), "beta": draw.normal(channels)}
    if draw.flag():
        inputs["residual"] = draw.normal(*x.shape)
    return inputs, draw.flag()


def behind(y, residual, relu):
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


def group_norm(draw: Draw) -> Case:
    groups = draw.size(1, 3)
    inputs, relu = planes(draw, 2 * groups)

    def function(x, gamma, beta, residual=None):
        y = F.group_norm(x, groups, gamma, beta, 0.1)
        parts = x.reshape(len(x), groups, -1)
        scale = (parts.var(2, correction=0) + 0.1).rsqrt()
        return {"y": behind(y, residual, relu), "mean": parts.mean(2), "scale": scale}

    return Case(inputs, function, {"groups": groups, "epsilon": 0.1, "relu": relu})


def batch_norm(draw: Draw) -> Case:
    inputs, relu = planes(draw, draw.size(1, 3))
    channels = inputs["x"].shape[1]
    inputs |= {
        "running_mean": draw.normal(channels),
        "running_variance": draw.normal(channels) ** 2,
    }

    def function(x, gamma, beta, *, running_mean, running_variance, residual=None):
        mean, variance = running_mean.detach().clone(), running_variance.detach().clone()
        y = F.batch_norm(x, mean, variance, gamma, beta, True, 0.2, 0.1)
        axes = [it for it in range(x.dim()) if it != 1]
        scale = (x.var(axes, correction=0) + 0.1).rsqrt()
        found = {"y": behind(y, residual, relu), "mean": x.mean(axes), "scale": scale}
        return {**found, "running_mean": mean, "running_variance": variance}

    return Case(inputs, function, {"epsilon": 0.1, "momentum": 0.2, "relu": relu})


def batch_norm_inference(draw: Draw) -> Case:
    inputs, relu = planes(draw, draw.size(1, 3))
    channels = inputs["x"].shape[1]
    inputs |= {
        "running_mean": draw.normal(channels),
        "running_variance": draw.normal(channels) ** 2,
    }

    def function(x, gamma, beta, *, running_mean, running_variance, residual=None):
        y = F.batch_norm(x, running_mean.detach(), running_variance.detach(), gamma, beta, eps=0.1)
        return {"y": behind(y, residual, relu)}

    return Case(inputs, function, {"epsilon": 0.1, "relu": relu})


def layer_norm(draw: Draw) -> Case:
    axes = draw.size(1, 2)
    last = [draw.size(2, 3) for _ in range(axes)]
    x = draw.normal(draw.size(1, 3), *last)
    inputs = {"x": x, "gamma": draw.normal(*last), "beta": draw.normal(*last)}

    def function(x, gamma, beta):
        y, mean, scale = torch.native_layer_norm(x, last, gamma, beta, 0.1)
        return {"y": y, "mean": mean.reshape(len(x)), "scale": scale.reshape(len(x))}

    return Case(inputs, function, {"axes": axes, "epsilon": 0.1})


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


def embedding(draw: Draw) -> Case:
    table, indices = draw.normal(5, 2), draw.rng.integers(0, 5, size=(2, 3))
    return Case(
        {"indices": indices, "table": table},
        lambda indices, table: {"y": F.embedding(indices, table)},
    )


def add_positions(draw: Draw) -> Case:
    inputs = {"x": draw.normal(2, draw.size(1, 3), 2), "table": draw.normal(draw.size(3, 4), 2)}
    return Case(inputs, lambda x, table: {"y": x + table[: x.shape[1]]})


def attention(draw: Draw) -> Case:
    heads, causal, length = draw.size(1, 2), draw.flag(), draw.size(1, 4)
    source = length if causal else draw.size(1, 4)
    features = heads * draw.size(1, 3)
    inputs = {"q": draw.normal(2, length, features)}
    inputs |= {name: draw.normal(2, source, features) for name in "kv"}

    def function(q, k, v):
        queries, keys, values = (it.unflatten(2, (heads, -1)).transpose(1, 2) for it in (q, k, v))
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(length, source).triu(1).bool(), -torch.inf)
        return {"y": y.transpose(1, 2).flatten(2), "weights": scores.softmax(-1)}

    return Case(inputs, function, {"heads": heads, "causal": causal})


def cross_entropy(draw: Draw) -> Case:
    lead = [draw.size(1, 3) for _ in range(draw.size(1, 2))]
    logits, targets = 3 * draw.normal(*lead, 4), draw.rng.integers(-2, 4, size=lead)
    share = draw.rng.uniform(0.1, 1, size=1)

    def function(logits, targets, share):
        flat = targets.clamp(min=-1).flatten()
        loss = F.cross_entropy(logits.flatten(0, -2), flat, ignore_index=-1, reduction="sum")
        return {"loss": loss * share[0], "probabilities": logits.softmax(-1)}

    return Case({"logits": logits, "targets": targets, "share": share}, function)


def stepped(make: Callable[..., torch.optim.Optimizer], parameter, gradient, state) -> Any:
    """Take a step of torch's optimizer from a state; return the parameter and the new state."""
    held = parameter.detach().clone().requires_grad_()
    optimizer = make([held])
    optimizer.state[held] = {name: it.detach().clone() for name, it in state.items()}
    held.grad = gradient.detach().clone()
    optimizer.step()
    return held.detach(), optimizer.state[held]


def sgd(draw: Draw) -> Case:
    momentum, nesterov, decay = draw.size(0, 1) * 0.9, draw.flag(), draw.size(0, 1) * 0.1
    nesterov = nesterov and momentum > 0
    inputs = {name: draw.normal(3, 2) for name in ("gradient", "parameter")}
    inputs["rates"] = np.array([0.3])
    if momentum:
        inputs["momentum_buffer"] = draw.normal(3, 2)

    def function(gradient, parameter, rates, momentum_buffer=None):
        state = {} if momentum_buffer is None else {"momentum_buffer": momentum_buffer}
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
        new, state = stepped(
            lambda held: torch.optim.SGD(held, 0.3, **options), parameter, gradient, state
        )
        return {"parameter": new, **{k: it for k, it in state.items() if it is not None}}

    attributes = {"weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    return Case(inputs, function, attributes)


def adam(draw: Draw) -> Case:
    decoupled, decay, step = draw.flag(), draw.size(0, 1) * 0.1, draw.size(0, 5)
    inputs = {name: draw.normal(3, 2) for name in ("gradient", "parameter", "first")}
    inputs["second"] = draw.normal(3, 2) ** 2
    inputs |= {"rates": np.array([0.3]), "step": np.array([step])}

    def function(gradient, parameter, *, first, second, rates, step):
        state = {"exp_avg": first, "exp_avg_sq": second, "step": step[0].double()}
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        options = {"betas": (0.8, 0.9), "eps": 0.01, "weight_decay": decay}
        new, state = stepped(lambda held: kind(held, 0.3, **options), parameter, gradient, state)
        moments = {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
        return {"parameter": new, **moments, "step": state["step"].view(1)}

    attributes = {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.01, "weight_decay": decay}
    return Case(inputs, function, {**attributes, "decoupled": decoupled})


#: Forward operator -> how its cases are drawn.
CASES: dict[str, Callable[[Draw], Case]] = {
    "conv2d": conv2d,
    "sparse_conv2d": sparse_conv2d,
    "linear": linear,
    "sparse_linear": sparse_linear,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
    "batch_norm_inference": batch_norm_inference,
    "layer_norm": layer_norm,
    "relu": activation(torch.relu),
    "relu6": activation(F.relu6),
    "silu": activation(F.silu),
    "gelu": activation(F.gelu),
    "hard_swish": activation(F.hardswish),
    "add": binary(torch.add),
    "multiply": binary(torch.mul),
    "accumulate": accumulate,
    "dropout": dropout,
    "max_pool2d": max_pool2d,
    "average_pool2d": average_pool2d,
    "global_average_pool": global_average_pool,
    "sequence_mean": sequence_mean,
    "reshape": reshape,
    "split": split,
    "embedding": embedding,
    "add_positions": add_positions,
    "attention": attention,
    "cross_entropy": cross_entropy,
    "sgd": sgd,
    "adam": adam,
}


def gradients_of(name):
    """Name the operators that compute gradients of an operator's inputs."""
    parts = ("", "_input", "_weight", "_values")
    found = [it for part in parts if (it := f"{name}{part}_gradient") in OPERATORS]
    return [*found, "bias_gradient"] if "b" in OPERATORS[name].optional else found


def shapes_of(kind, arrays, attributes):
    """Let the rule of an operator complete the shapes of outputs that are left out."""
    names = (*kind.inputs, *kind.outputs)
    known = {name: arrays[name].shape for name in names if name in arrays}
    wanted = [name for name in kind.outputs if name not in kind.optional]
    shapes = Shapes(kind.name, known, wanted, attributes)
    kind.rule(shapes)
    return {name: shapes[name] for name in kind.outputs if name in shapes}
