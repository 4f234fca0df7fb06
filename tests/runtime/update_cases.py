"""Cross-entropy and updates: small cases beside what torch computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from drawn import Case, Draw, Makes
from product_cases import gathered, granules, scattered, values_of
from torch.nn import functional as F


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


def momentum_of(draw: Draw, *shape: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draw the rate and state of SGD, and its attributes."""
    momentum, nesterov, decay = draw.size(0, 1) * 0.9, draw.flag(), draw.size(0, 1) * 0.1
    inputs = {"rates": np.array([0.3])}
    if momentum:
        inputs["momentum_buffer"] = draw.normal(*shape)
    nesterov = nesterov and momentum > 0
    return inputs, {"weight_decay": decay, "momentum": momentum, "nesterov": nesterov}


def sgd_step(gradient, parameter, momentum_buffer, options, *, name="parameter"):
    """Return what torch's SGD makes of a parameter and its state, by name."""
    state = {} if momentum_buffer is None else {"momentum_buffer": momentum_buffer}
    new, state = stepped(
        lambda held: torch.optim.SGD(held, 0.3, **options), parameter, gradient, state
    )
    return {name: new, **{k: it for k, it in state.items() if it is not None}}


def sgd(draw: Draw) -> Case:
    inputs, options = momentum_of(draw, 3, 2)
    inputs |= {name: draw.normal(3, 2) for name in ("gradient", "parameter")}

    def function(gradient, parameter, rates, momentum_buffer=None):
        return sgd_step(gradient, parameter, momentum_buffer, options)

    return Case(inputs, function, options)


def linear_sgd(draw: Draw) -> Case:
    images, features, outputs = draw.size(1, 12), draw.size(1, 70), draw.size(1, 9)
    inputs, options = momentum_of(draw, outputs, features)
    inputs |= {"x": draw.normal(images, features), "dy": draw.normal(images, outputs)}
    inputs["w"] = draw.normal(outputs, features)

    def function(x, dy, rates, w, momentum_buffer=None):
        return {"dx": dy @ w, **sgd_step(dy.T @ x, w, momentum_buffer, options, name="w")}

    blank = {"dx": (images, features)} if draw.flag() else {}
    return Case(inputs, function, options, blank)


def sparse_linear_sgd(draw: Draw) -> Case:
    images, features, outputs = draw.size(1, 20), draw.size(1, 40), draw.size(1, 9)
    layout, slots = granules(draw, (outputs, features))
    values = values_of(draw, layout, slots)
    inputs, options = momentum_of(draw, *values.shape)
    if "momentum_buffer" in inputs:  # past the active values it is zero, as they are
        inputs["momentum_buffer"] = np.where(values != 0, inputs["momentum_buffer"], 0)
    inputs |= {"x": draw.normal(images, features), "dy": draw.normal(images, outputs)}
    inputs |= {"values": values, "slots": slots}

    def function(x, slots, dy, *, rates, values, momentum_buffer=None):
        gradient = torch.tensor(gathered(layout, (dy.T @ x).detach().numpy(), slots.numpy()))
        dx = dy @ scattered(layout, values, slots)
        return {"dx": dx, **sgd_step(gradient, values, momentum_buffer, options, name="values")}

    how = {**options, "weight_shape": (outputs, features), "rows": layout.rows}
    blank = {"dx": (images, features)} if draw.flag() else {}
    return Case(inputs, function, how, blank)


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


CASES: dict[str, Makes] = {
    "cross_entropy": cross_entropy,
    "sgd": sgd,
    "linear_sgd": linear_sgd,
    "sparse_linear_sgd": sparse_linear_sgd,
    "adam": adam,
}
