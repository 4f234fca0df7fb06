"""Normalisations in NumPy: statistics, the residual addition and the ReLU behind them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _moments(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    """Return mean and 1 / sqrt(variance + epsilon), with axes of length 1 where there were more."""
    mean = x.mean(axis=axes, keepdims=True)
    variance = np.square(x - mean).mean(axis=axes, keepdims=True)
    return mean, 1 / np.sqrt(variance + epsilon)


def _behind(y: Array, residual: Array | None, relu: bool) -> Array:
    y = y if residual is None else y + residual
    return np.maximum(y, 0) if relu else y


def _before_relu(
    dy: Array, *, relu: bool, y: Array | None = None, more: Array | None = None, **_: Any
) -> Array:
    """Return the gradient before the ReLU, which was open where its output is not zero."""
    dy = dy if more is None else dy + more
    return np.where(y > 0, dy, 0) if relu and y is not None else dy


def _apply(x: Array, mean: Array, scale: Array, gamma: Array, beta: Array, **how: Any) -> Array:
    """Return the output of a norm whose statistics are known."""
    if mean.ndim == 2:  # of groups: one of each channel
        each = x.shape[1] // mean.shape[1]
        wide = (*x.shape[:2], *[1] * (x.ndim - 2))
        mean, scale = (it.repeat(each, axis=1).reshape(wide) for it in (mean, scale))
    else:
        mean, scale = _wide(mean, x), _wide(scale, x)
    y = (x - mean) * scale * _wide(gamma, x) + _wide(beta, x)
    return _behind(y, how.get("residual"), how["relu"])


def _wide(parameter: Array, x: Array) -> Array:
    """Return a parameter of each channel so that it meets planes."""
    return parameter.reshape(1, -1, *[1] * (x.ndim - 2))


def _centred_gradient(x: Array, dnorm: Array, scale: Array, axes: tuple[int, ...]) -> Array:
    """Return the gradient of x where x is the normalised input; see Ioffe and Szegedy 2015."""
    mean = dnorm.mean(axis=axes, keepdims=True)
    along = (dnorm * x).mean(axis=axes, keepdims=True)
    result: Array = scale * (dnorm - mean - x * along)
    return result


def _of_channels(gradient: Array) -> Array:
    total: Array = gradient.sum(axis=tuple(it for it in range(gradient.ndim) if it != 1))
    return total


def group_norm(
    x: Array, gamma: Array, beta: Array, residual: Array | None = None, **how: Any
) -> tuple[Array, ...]:
    """Normalise groups of channels of each example."""
    shape, groups = (len(x), how["groups"], -1), how["groups"]
    mean, scale = _moments(x.reshape(shape), (2,), how["epsilon"])
    normal = ((x.reshape(shape) - mean) * scale).reshape(x.shape)
    y = _behind(normal * _wide(gamma, x) + _wide(beta, x), residual, how["relu"])
    return y, mean.reshape(-1, groups), scale.reshape(-1, groups)


def group_norm_gradient(
    x: Array, mean: Array, scale: Array, gamma: Array, dy: Array, **how: Any
) -> tuple[Array, ...]:
    """Return the gradients of input, gamma, beta and residual."""
    dy = _before_relu(dy, **how)
    shape = (len(x), how["groups"], -1)
    level, factor = mean[:, :, None], scale[:, :, None]
    normal = (x.reshape(shape) - level) * factor
    dnorm = (dy * _wide(gamma, x)).reshape(shape)
    dx = _centred_gradient(normal, dnorm, factor, (2,)).reshape(x.shape)
    return dx, _of_channels(dy * normal.reshape(x.shape)), _of_channels(dy), dy


def batch_norm(
    x: Array, gamma: Array, beta: Array, residual: Array | None = None, **how: Any
) -> tuple[Array, ...]:
    """Normalise channels over the batch, and move the running statistics towards the batch's."""
    axes = tuple(it for it in range(x.ndim) if it != 1)
    mean, scale = _moments(x, axes, how["epsilon"])
    y = (x - mean) * scale * _wide(gamma, x) + _wide(beta, x)
    count, momentum = x.size // x.shape[1], how["momentum"]
    unbiased = np.square(x - mean).mean(axis=axes) * (count / (count - 1))
    running_mean = how["running_mean"] * (1 - momentum) + momentum * mean.reshape(-1)
    running_variance = how["running_variance"] * (1 - momentum) + momentum * unbiased
    y = _behind(y, residual, how["relu"])
    return y, mean.reshape(-1), scale.reshape(-1), running_mean, running_variance


def batch_norm_gradient(
    x: Array, mean: Array, scale: Array, gamma: Array, dy: Array, **how: Any
) -> tuple[Array, ...]:
    """Return the gradients of input, gamma, beta and residual."""
    dy = _before_relu(dy, **how)
    axes = tuple(it for it in range(x.ndim) if it != 1)
    normal = (x - _wide(mean, x)) * _wide(scale, x)
    dx = _centred_gradient(normal, dy * _wide(gamma, x), _wide(scale, x), axes)
    return dx, _of_channels(dy * normal), _of_channels(dy), dy


def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, residual: Array | None = None, **how: Any
) -> Array:
    """Normalise channels by running statistics, as in evaluation."""
    scale = 1 / np.sqrt(how["running_variance"] + how["epsilon"])
    y = (x - _wide(how["running_mean"], x)) * _wide(scale * gamma, x) + _wide(beta, x)
    return _behind(y, residual, how["relu"])


def layer_norm(
    x: Array, gamma: Array, beta: Array, *, axes: int, epsilon: float, **_: Any
) -> tuple[Array, ...]:
    """Normalise the last axes of each example or position."""
    mean, scale = _moments(x, tuple(range(-axes, 0)), epsilon)
    lead = x.shape[:-axes]
    return (x - mean) * scale * gamma + beta, mean.reshape(lead), scale.reshape(lead)


def layer_norm_gradient(
    x: Array, mean: Array, scale: Array, gamma: Array, dy: Array, **how: Any
) -> tuple[Array, ...]:
    """Return the gradients of input, gamma and beta."""
    axes = how["axes"]
    level, factor = (it.reshape(*it.shape, *[1] * axes) for it in (mean, scale))
    normal = (x - level) * factor
    dx = _centred_gradient(normal, dy * gamma, factor, tuple(range(-axes, 0)))
    lead = tuple(range(x.ndim - axes))
    return dx, (dy * normal).sum(axis=lead), dy.sum(axis=lead)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "group_norm": group_norm,
    "group_norm_gradient": group_norm_gradient,
    "group_norm_apply": _apply,
    "batch_norm_apply": _apply,
    "batch_norm": batch_norm,
    "batch_norm_gradient": batch_norm_gradient,
    "batch_norm_inference": batch_norm_inference,
    "layer_norm": layer_norm,
    "layer_norm_gradient": layer_norm_gradient,
}
