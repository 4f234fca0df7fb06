"""Normalisation, the residual and the ReLU behind it: small cases beside what torch computes."""

import numpy as np
import torch
from drawn import Case, Draw, Makes
from torch.nn import functional as F


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


def norm_apply(draw: Draw, groups: int) -> Case:
    """Of groups of channels, or of the batch (0)."""
    inputs, relu = planes(draw, 2 * max(1, groups))
    shape = inputs["x"].shape
    statistics = (shape[0], groups) if groups else shape[1:2]
    inputs |= {"mean": draw.normal(*statistics), "scale": draw.normal(*statistics) ** 2}

    def function(x, *, mean, scale, gamma, beta, residual=None):
        parts = x.reshape(len(x), groups, -1) if groups else x.transpose(0, 1).flatten(1)
        normal = (parts - mean[..., None]) * scale[..., None]
        if not groups:
            normal = normal.unflatten(1, (shape[0], -1)).transpose(0, 1)
        wide = (-1, *[1] * (x.dim() - 2))
        y = normal.reshape(shape) * gamma.view(wide) + beta.view(wide)
        return {"y": behind(y, residual, relu)}

    return Case(inputs, function, {"relu": relu, **({"groups": groups} if groups else {})})


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


CASES: dict[str, Makes] = {
    "group_norm": group_norm,
    "batch_norm": batch_norm,
    "group_norm_apply": lambda draw: norm_apply(draw, draw.size(1, 3)),
    "batch_norm_apply": lambda draw: norm_apply(draw, 0),
    "batch_norm_inference": batch_norm_inference,
    "layer_norm": layer_norm,
}
