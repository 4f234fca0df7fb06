"""Cross-entropy and updates: small cases beside what torch computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from drawn import Case, Draw, Makes
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


CASES: dict[str, Makes] = {
    "cross_entropy": cross_entropy,
    "sgd": sgd,
    "adam": adam,
}
