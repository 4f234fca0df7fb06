"""Choices of channels, moves of axes, and some functions of elements, in NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.runtime.reference_elementwise import sigmoid

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]


def softmax(x: Array, **_: Any) -> Array:
    """Return exp(x), of which the sum over the last axis is made one."""
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = grown / grown.sum(axis=-1, keepdims=True)
    return y


def _softmax_gradient(y: Array, dy: Array, **_: Any) -> Array:
    dx: Array = y * (dy - (y * dy).sum(axis=-1, keepdims=True))
    return dx


def _elu(x: Array, *, alpha: float, **_: Any) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def take_channels(x: Array, slots: Array, **_: Any) -> Array:
    """Return the channels of slots, and zeros for slots of -1."""
    y = np.zeros((len(x), len(slots), *x.shape[2:]), x.dtype)
    active = slots >= 0
    y[:, active] = x[:, slots[active]]
    return y


def place_channels(
    x: Array, slots: Array, b: Array | None = None, *, channels: int, **_: Any
) -> Array:
    """Return planes of zeros in which the channels of slots are those of x; then add the bias."""
    y = np.zeros((len(x), channels, *x.shape[2:]), x.dtype)
    active = slots >= 0
    y[:, slots[active]] = x[:, active]
    return y if b is None else y + _wide(b, x.ndim - 2)


def _wide(array: Array, axes: int) -> Array:
    """Return an array with so many axes of one value behind its own."""
    return array.reshape(*array.shape, *[1] * axes)


def _concat_gradient(dc: Array, *, shapes: Shapes) -> tuple[Array, Array]:
    first = shapes["da"][1]
    return dc[:, :first], dc[:, first:]


def _multiply_channels(x: Array, s: Array, **_: Any) -> Array:
    return x * _wide(s, x.ndim - 2)


def _multiply_channels_gradient(x: Array, s: Array, dy: Array, **_: Any) -> tuple[Array, Array]:
    return dy * _wide(s, x.ndim - 2), (x * dy).sum(axis=tuple(range(2, x.ndim)))


def _upsample_gradient(dy: Array, *, factors: tuple[int, int], shapes: Shapes) -> Array:
    images, channels, height, width = shapes["dx"]
    parts = dy.reshape(images, channels, height, factors[0], width, factors[1])
    dx: Array = parts.sum(axis=(3, 5))
    return dx


def _select_gradient(dy: Array, *, index: int, shapes: Shapes) -> Array:
    dx = np.zeros(shapes["dx"], dy.dtype)
    dx[:, index] = dy
    return dx


def _where_open(is_open: Callable[[Array], Array], slope: float) -> Callable[..., Array]:
    """Return a gradient that is ``slope`` times that of the output where a gate is open."""
    return lambda y, dy, shapes: np.where(is_open(y), dy * slope, 0)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "sigmoid": lambda x, shapes: sigmoid(x),
    "sigmoid_gradient": lambda y, dy, shapes: dy * y * (1 - y),
    "hard_sigmoid": lambda x, shapes: np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid_gradient": _where_open(lambda y: (y > 0) & (y < 1), 1 / 6),
    "tanh": lambda x, shapes: np.tanh(x),
    "tanh_gradient": lambda y, dy, shapes: dy * (1 - np.square(y)),
    "leaky_relu": lambda x, slope, shapes: np.where(x > 0, x, slope * x),
    "leaky_relu_gradient": lambda y, dy, slope, shapes: np.where(y > 0, dy, slope * dy),
    "elu": _elu,
    "elu_gradient": lambda y, dy, alpha, shapes: dy * np.where(y > 0, 1, y + alpha),
    "softmax": softmax,
    "softmax_gradient": _softmax_gradient,
    "scale": lambda x, factor, offset, shapes: factor * x + offset,
    "subtract": lambda a, b, shapes: a - b,
    "take_channels": take_channels,
    "place_channels": place_channels,
    "concat": lambda a, b, shapes: np.concatenate((a, b), axis=1),
    "concat_gradient": _concat_gradient,
    "multiply_channels": _multiply_channels,
    "multiply_channels_gradient": _multiply_channels_gradient,
    "upsample_nearest": lambda x, factors, shapes: x.repeat(factors[0], 2).repeat(factors[1], 3),
    "upsample_nearest_gradient": _upsample_gradient,
    "transpose": lambda x, axes, shapes: x.swapaxes(*axes),
    "select": lambda x, index, shapes: x[:, index],
    "select_gradient": _select_gradient,
}
