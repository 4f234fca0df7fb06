"""Losses of numbers and labels, norms of gradients, and FedProx's term, in NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.runtime.reference_elementwise import sigmoid

Array = NDArray[Any]


def _error(
    of: Callable[[Array], Array], slope: Callable[[Array], Array]
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Return the loss that is a function of differences, and its gradient."""

    def loss(outputs: Array, targets: Array, share: Array, **_: Any) -> Array:
        found = of(outputs - targets)
        return np.asarray(found.mean(axis=1).sum() * share[0])

    def gradient(outputs: Array, targets: Array, share: Array, **_: Any) -> Array:
        result: Array = slope(outputs - targets) * share[0] / outputs.shape[1]
        return result

    return loss, gradient


def _huber(d: Array) -> Array:
    size = np.abs(d)
    return np.where(size <= 1, d * d / 2, size - 0.5)


def _binary(logits: Array, targets: Array, share: Array, **_: Any) -> Array:
    """Return -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), without overflow."""
    each = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return np.asarray(each.mean(axis=1).sum() * share[0])


def _binary_gradient(logits: Array, targets: Array, share: Array, **_: Any) -> Array:
    result: Array = (sigmoid(logits) - targets) * share[0] / logits.shape[1]
    return result


def sum_of_squares(x: Array, before: Array | None = None, **_: Any) -> Array:
    """Return the sum of all squares, added to what is there before."""
    total: Array = np.square(x).sum().reshape(1)
    return total if before is None else before + total


def clip(gradient: Array, total: Array, *, most: float, **_: Any) -> Array:
    """Return a gradient that is scaled so that all together have at most a norm."""
    scaled: Array = gradient * np.minimum(1, most / (np.sqrt(total[0]) + 1e-6))
    return scaled


def _proximal(
    gradient: Array, parameter: Array, reference: Array, *, strength: float, **_: Any
) -> Array:
    return gradient + strength * (parameter - reference)


_squared, _squared_gradient = _error(np.square, lambda d: 2 * d)
_absolute, _absolute_gradient = _error(np.abs, np.sign)
_of_huber, _huber_gradient = _error(_huber, lambda d: np.clip(d, -1, 1))

OPERATORS: Mapping[str, Callable[..., Any]] = {
    "squared_error": _squared,
    "squared_error_gradient": _squared_gradient,
    "absolute_error": _absolute,
    "absolute_error_gradient": _absolute_gradient,
    "huber": _of_huber,
    "huber_gradient": _huber_gradient,
    "binary_cross_entropy": _binary,
    "binary_cross_entropy_gradient": _binary_gradient,
    "sum_of_squares": sum_of_squares,
    "clip": clip,
    "proximal": _proximal,
}
