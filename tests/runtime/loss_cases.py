"""Losses of numbers and labels, norms of gradients, FedProx's term: small cases."""

from collections.abc import Callable

import numpy as np
import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F


def loss(of: Callable[..., torch.Tensor], outputs: str) -> Makes:
    def case(draw: Draw) -> Case:
        shape = draw.size(1, 3), draw.size(1, 4)
        labels = outputs == "logits"
        targets = draw.rng.integers(0, 5, shape) / 4 if labels else draw.halves(*shape)
        given = 3 * draw.normal(*shape) if labels else draw.halves(*shape)
        inputs = {outputs: given, "targets": targets, "share": np.array([draw.size(1, 4) / 4])}

        def function(targets, share, **given):
            each = of(given[outputs], targets, reduction="none").mean(1)
            return {"loss": each.sum() * share[0]}

        return Case(inputs, function)

    return case


def sum_of_squares(draw: Draw) -> Case:
    inputs = {"x": draw.normal(3, draw.size(1, 4))}
    if draw.flag():
        inputs["before"] = draw.normal(1) ** 2
    return Case(inputs, lambda x, before=0: {"total": (before + x.square().sum()).view(1)})


def clip(draw: Draw) -> Case:
    most, gradient = draw.size(0, 4) / 2, draw.normal(2, 3)
    others = draw.normal(4)
    total = np.sum(gradient**2, keepdims=True).reshape(1) + np.sum(others**2)

    def function(gradient, total):
        grads = gradient.detach().clone(), torch.tensor(others)
        held = [torch.zeros_like(it).requires_grad_() for it in grads]
        for parameter, grad in zip(held, grads, strict=True):
            parameter.grad = grad
        torch.nn.utils.clip_grad_norm_(held, most)
        return {"y": held[0].grad}

    return Case({"gradient": gradient, "total": total}, function, {"most": most})


def proximal(draw: Draw) -> Case:
    strength = draw.size(0, 4) / 2
    inputs = {it: draw.normal(2, 3) for it in ("gradient", "parameter", "reference")}

    def function(gradient, parameter, reference):
        return {"y": gradient + strength * (parameter - reference)}

    return Case(inputs, function, {"strength": strength})


CASES: dict[str, Makes] = {
    "squared_error": loss(F.mse_loss, "outputs"),
    "absolute_error": loss(F.l1_loss, "outputs"),
    "huber": loss(F.huber_loss, "outputs"),
    "binary_cross_entropy": loss(F.binary_cross_entropy_with_logits, "logits"),
    "sum_of_squares": sum_of_squares,
    "clip": clip,
    "proximal": proximal,
}
