"""Activations, sums, pools, shapes, tokens, loss and updates in NumPy."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

_ERF = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        result: Array = 1 / (1 + np.exp(-x))
    return result


def _silu_gradient(x: Array, dy: Array, **_: Any) -> Array:
    share = sigmoid(x)
    dx: Array = dy * share * (1 + x * (1 - share))
    return dx


def _normal(x: Array) -> Array:
    """Return the cumulative distribution of the standard normal."""
    erf: Array = np.asarray(_ERF(x / math.sqrt(2)), x.dtype)
    return (1 + erf) / 2


def _gelu_gradient(x: Array, dy: Array, **_: Any) -> Array:
    density = np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)
    return dy * (_normal(x) + x * density)


def _hard_swish_gradient(x: Array, dy: Array, **_: Any) -> Array:
    slope = np.where(x <= -3, 0, np.where(x < 3, x / 3 + 0.5, 1))
    return dy * slope


def _relu6_gradient(y: Array, dy: Array, **_: Any) -> Array:
    return np.where((y > 0) & (y < 6), dy, 0)


def words(seed: int, count: int, before: int = 0) -> NDArray[np.uint64]:
    """Return words of SplitMix64 (Steele, Lea and Flood 2014) from a seed, but so many before."""
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        z = (
            np.uint64(seed % 2**64)
            + np.arange(before + 1, before + count + 1, dtype=np.uint64) * step
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def dropout(
    x: Array, seed: Array, *, probability: float, before: int = 0, **_: Any
) -> tuple[Array, Array]:
    """Return x with elements dropped and the others scaled up, and which were kept.

    ``before`` counts the groups of x's size that the batch had before.
    """
    least = math.floor(probability * 2**24 + 0.5)
    kept = words(int(seed[0]), x.size, before * x.size) >> np.uint64(40) >= least
    kept = kept.reshape(x.shape)
    return np.where(kept, x / (1 - probability), 0), kept.astype(np.uint8)


def _dropout_gradient(kept: Array, dy: Array, *, probability: float, **_: Any) -> Array:
    return np.where(kept != 0, dy / (1 - probability), 0)


def _taps(shape: tuple[int, ...], pooled: tuple[int, ...], how: Mapping[str, Any]) -> Any:
    """Yield each place of a window, and the rows and columns of the plane that it meets."""
    kernel, stride, padding = how["kernel"], how["stride"], how["padding"]
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = np.arange(pooled[2]) * stride[0] - padding[0] + i
            columns = np.arange(pooled[3]) * stride[1] - padding[1] + j
            inside = ((rows >= 0) & (rows < shape[2]))[:, None] & (
                (columns >= 0) & (columns < shape[3])
            )
            at = np.ix_(rows.clip(0, shape[2] - 1), columns.clip(0, shape[3] - 1))
            yield i * kernel[1] + j, at, inside


def _add_at(planes: Array, rows: Array, columns: Array, part: Array) -> None:
    """Add to rows and columns of planes, of which several may be one."""
    at: Any = (slice(None), slice(None), rows, columns)
    np.add.at(planes, at, part)


def max_pool2d(x: Array, *, shapes: Shapes, **how: Any) -> tuple[Array, Array]:
    """Return the maxima of windows, the first of equals, and their places."""
    best = np.full(shapes["y"], -np.inf, x.dtype)
    where = np.zeros(shapes["y"], np.uint8)
    found = np.zeros(shapes["y"], bool)
    for place, (rows, columns), inside in _taps(x.shape, shapes["y"], how):
        seen = x[:, :, rows, columns]
        better = inside & (~found | (seen > best))
        best, where = np.where(better, seen, best), np.where(better, np.uint8(place), where)
        found |= better
    return best, where


def _max_pool2d_gradient(where: Array, dy: Array, *, shapes: Shapes, **how: Any) -> Array:
    dx = np.zeros(shapes["dx"], dy.dtype)
    for place, (rows, columns), inside in _taps(dx.shape, dy.shape, how):
        part = np.where(inside & (where == place), dy, 0)
        _add_at(dx, rows, columns, part)
    return dx


def average_pool2d(x: Array, *, shapes: Shapes, **how: Any) -> Array:
    """Return the means of windows; what is outside the plane counts as zeros."""
    total = np.zeros(shapes["y"], x.dtype)
    for _, (rows, columns), inside in _taps(x.shape, shapes["y"], how):
        total += np.where(inside, x[:, :, rows, columns], 0)
    mean: Array = total / math.prod(how["kernel"])
    return mean


def _average_pool2d_gradient(dy: Array, *, shapes: Shapes, **how: Any) -> Array:
    dx = np.zeros(shapes["dx"], dy.dtype)
    for _, (rows, columns), inside in _taps(dx.shape, dy.shape, how):
        part = np.where(inside, dy, 0) / math.prod(how["kernel"])
        _add_at(dx, rows, columns, part)
    return dx


def _global_average_pool_gradient(dy: Array, *, shapes: Shapes) -> Array:
    shape = shapes["dx"]
    wide = dy.reshape(*dy.shape, *[1] * (len(shape) - 2))
    return np.broadcast_to(wide / math.prod(shape[2:]), shape)


def _sequence_mean_gradient(dy: Array, *, shapes: Shapes) -> Array:
    return np.broadcast_to(dy[:, None] / shapes["dx"][1], shapes["dx"])


def _checked(numbers: Array, most: int, what: str) -> Array:
    """Refuse numbers of classes or tokens that there are not; NumPy counts negative ones back."""
    if numbers.size and (numbers.min() < 0 or numbers.max() >= most):
        raise InputError(
            f"{what} are from {numbers.min()} to {numbers.max()}; allowed: 0 to {most - 1}"
        )
    return numbers


def _embedding_gradient(indices: Array, dy: Array, *, shapes: Shapes) -> Array:
    dtable = np.zeros(shapes["dtable"], dy.dtype)
    np.add.at(dtable, indices, dy)
    return dtable


def _add_positions_gradient(dy: Array, *, shapes: Shapes) -> Array:
    dtable = np.zeros(shapes["dtable"], dy.dtype)
    dtable[: dy.shape[1]] = dy.sum(axis=0)
    return dtable


def _counted(targets: Array, classes: int) -> tuple[Array, Array]:
    """Return classes, 0 where a row does not count, and which rows do."""
    counted = targets >= 0
    return _checked(np.where(counted, targets, 0), classes, "targets")[..., None], counted


def _cross_entropy(logits: Array, targets: Array, share: Array, **_: Any) -> tuple[Array, Array]:
    at, counted = _counted(targets, logits.shape[-1])
    shifted = logits - logits.max(axis=-1, keepdims=True)
    grown = np.exp(shifted)
    total = grown.sum(axis=-1, keepdims=True)
    wanted = np.take_along_axis(shifted - np.log(total), at, axis=-1)
    return np.asarray(-wanted[counted].sum() * share[0]), grown / total


def _cross_entropy_gradient(probabilities: Array, targets: Array, share: Array, **_: Any) -> Array:
    dlogits = probabilities.copy()
    at, counted = _counted(targets, dlogits.shape[-1])
    np.put_along_axis(dlogits, at, np.take_along_axis(dlogits, at, axis=-1) - 1, axis=-1)
    return np.where(counted[..., None], dlogits * share[0], 0)


def sgd(
    gradient: Array,
    rates: Array,
    parameter: Array,
    momentum_buffer: Array | None = None,
    **how: Any,
) -> tuple[Array, Array | None]:
    """Take a step of SGD with momentum (Sutskever et al. 2013, as torch has it)."""
    gradient = gradient + how["weight_decay"] * parameter
    if momentum_buffer is None:
        return parameter - rates[0] * gradient, None
    momentum_buffer = how["momentum"] * momentum_buffer + gradient
    ahead = gradient + how["momentum"] * momentum_buffer
    step = ahead if how["nesterov"] else momentum_buffer
    return parameter - rates[0] * step, momentum_buffer


def adam(gradient: Array, rates: Array, parameter: Array, **given: Any) -> tuple[Array, ...]:
    """Take a step of Adam (Kingma and Ba 2015) or AdamW (Loshchilov and Hutter 2019)."""
    decay, beta1, beta2 = given["weight_decay"], given["beta1"], given["beta2"]
    if given["decoupled"]:
        parameter = parameter * (1 - rates[0] * decay)
    else:
        gradient = gradient + decay * parameter
    first = beta1 * given["first"] + (1 - beta1) * gradient
    second = beta2 * given["second"] + (1 - beta2) * np.square(gradient)
    step = given["step"] + 1
    count = int(step[0])
    deviation = np.sqrt(second / (1 - beta2**count)) + given["epsilon"]
    moved = parameter - rates[0] * (first / (1 - beta1**count)) / deviation
    return moved, first, second, step


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "relu": lambda x, shapes: np.maximum(x, 0),
    "relu_gradient": lambda y, dy, shapes: np.where(y > 0, dy, 0),
    "relu6": lambda x, shapes: np.clip(x, 0, 6),
    "relu6_gradient": _relu6_gradient,
    "silu": lambda x, shapes: x * sigmoid(x),
    "silu_gradient": _silu_gradient,
    "gelu": lambda x, shapes: x * _normal(x),
    "gelu_gradient": _gelu_gradient,
    "hard_swish": lambda x, shapes: x * np.clip(x + 3, 0, 6) / 6,
    "hard_swish_gradient": _hard_swish_gradient,
    "add": lambda a, b, shapes: a + b,
    "multiply": lambda a, b, shapes: a * b,
    "accumulate": lambda a, into, shapes: into + a,
    "dropout": dropout,
    "dropout_gradient": _dropout_gradient,
    "max_pool2d": max_pool2d,
    "max_pool2d_gradient": _max_pool2d_gradient,
    "average_pool2d": average_pool2d,
    "average_pool2d_gradient": _average_pool2d_gradient,
    "global_average_pool": lambda x, shapes: x.mean(axis=tuple(range(2, x.ndim))),
    "global_average_pool_gradient": _global_average_pool_gradient,
    "sequence_mean": lambda x, shapes: x.mean(axis=1),
    "sequence_mean_gradient": _sequence_mean_gradient,
    "reshape": lambda x, shapes: x.reshape(shapes["y"]),
    "split": lambda x, shapes: tuple(np.split(x, 3, axis=-1)),
    "split_gradient": lambda da, db, dc, shapes: np.concatenate((da, db, dc), axis=-1),
    "embedding": lambda indices, table, shapes: table[_checked(indices, len(table), "indices")],
    "embedding_gradient": _embedding_gradient,
    "add_positions": lambda x, table, shapes: x + table[: x.shape[1]],
    "add_positions_gradient": _add_positions_gradient,
    "cross_entropy": _cross_entropy,
    "cross_entropy_gradient": _cross_entropy_gradient,
    "sgd": sgd,
    "adam": adam,
}
