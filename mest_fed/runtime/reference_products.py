"""Convolutions, linear maps and attention, dense and sparse, in NumPy."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[int, int]


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Return the window of each output pixel: (n, channels, height, width, kh, kw)."""
    edges = ((0, 0), (0, 0), *((it, it) for it in padding))
    windows = sliding_window_view(np.pad(x, edges), kernel, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1]]


def _grouped(w: Array, groups: int) -> Array:
    return w.reshape(groups, len(w) // groups, *w.shape[1:])


def conv2d(x: Array, w: Array, b: Array | None = None, *, groups: int, **how: Any) -> Array:
    """Return the cross-correlation of planes with a weight."""
    windows = _windows(x, w.shape[2:], how["stride"], how["padding"])
    parts = windows.reshape(len(x), groups, -1, *windows.shape[2:])
    y = np.einsum("ngchwij,gocij->ngohw", parts, _grouped(w, groups), optimize=True)
    y = y.reshape(len(x), len(w), *y.shape[3:])
    result: Array = y if b is None else y + b[:, None, None]
    return result


def conv2d_weight_gradient(
    x: Array, dy: Array, *, groups: int, shapes: Mapping[str, tuple[int, ...]], **how: Any
) -> Array:
    """Return the gradient of the weight."""
    shape = shapes["dw"]
    windows = _windows(x, (shape[2], shape[3]), how["stride"], how["padding"])
    windows = windows[:, :, : dy.shape[2], : dy.shape[3]]
    parts = windows.reshape(len(x), groups, -1, *windows.shape[2:])
    of_groups = dy.reshape(len(x), groups, -1, *dy.shape[2:])
    dw: Array = np.einsum("ngchwij,ngohw->gocij", parts, of_groups, optimize=True)
    return dw.reshape(shape)


def conv2d_input_gradient(
    w: Array, dy: Array, *, groups: int, shapes: Mapping[str, tuple[int, ...]], **how: Any
) -> Array:
    """Return the gradient of the planes: each tap adds the gradients of the pixels it served."""
    images, channels, height, width = shapes["dx"]
    (down, across), (top, left) = how["stride"], how["padding"]
    padded = np.zeros((images, channels, height + 2 * top, width + 2 * left), dy.dtype)
    of_groups = dy.reshape(images, groups, -1, *dy.shape[2:])
    rows, columns = dy.shape[2:]
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            taps = _grouped(w, groups)[:, :, :, i, j]
            served = np.einsum("ngohw,goc->ngchw", of_groups, taps, optimize=True)
            place = (slice(i, i + rows * down, down), slice(j, j + columns * across, across))
            padded[:, :, place[0], place[1]] += served.reshape(images, channels, rows, columns)
    return padded[:, :, top : top + height, left : left + width]


def bias_gradient(dy: Array, **_: Any) -> Array:
    """Return the sum over all axes but the second."""
    total: Array = dy.sum(axis=tuple(axis for axis in range(dy.ndim) if axis != 1))
    return total


def linear(x: Array, w: Array, b: Array | None = None, **_: Any) -> Array:
    """Return x times the transposed weight."""
    y: Array = x @ w.T
    return y if b is None else y + b


def linear_input_gradient(w: Array, dy: Array, **_: Any) -> Array:
    """Return the gradient of the input."""
    dx: Array = dy @ w
    return dx


def linear_weight_gradient(x: Array, dy: Array, **_: Any) -> Array:
    """Return the gradient of the weight."""
    dw: Array = dy.T @ x
    return dw


def positions(slots: Array, shape: tuple[int, ...], rows: int) -> tuple[Array, Array]:
    """Return row and column of each value in the (out, in * kh * kw) weight, (slots, rows).

    Values past the last channel, and all of a slot of -1, have a row past the last.
    """
    columns = math.prod(shape[1:])
    strip, column = np.divmod(slots.astype(np.int64), columns)
    row = strip[:, None] * rows + np.arange(rows)
    row = np.where(slots[:, None] < 0, shape[0], row)
    return row, np.broadcast_to(column[:, None], row.shape)


def scatter(values: Array, slots: Array, shape: tuple[int, ...], rows: int) -> Array:
    """Return the dense weight that holds values at slots; those without a place are left out."""
    dense = np.zeros((shape[0], math.prod(shape[1:])), values.dtype)
    row, column = positions(slots, shape, rows)
    inside = row < shape[0]
    dense[row[inside], column[inside]] = values[inside]
    return dense.reshape(shape)


def gather(dense: Array, slots: Array, rows: int) -> Array:
    """Return the values of slots; those without a place are zero."""
    row, column = positions(slots, dense.shape, rows)
    flat, inside = dense.reshape(len(dense), -1), row < len(dense)
    values = np.zeros(row.shape, dense.dtype)
    values[inside] = flat[row[inside], column[inside]]
    return values


def _sparse(product: Callable[..., Array], *, groups: bool) -> Callable[..., Array]:
    """Return a product by the dense weight of values at slots."""

    def compute(
        *, values: Array, slots: Array, weight_shape: tuple[int, ...], rows: int, **given: Any
    ) -> Array:
        w = scatter(values, slots, weight_shape, rows)
        return product(w=w, **given, **({"groups": 1} if groups else {}))

    return compute


def _sparse_gradient(product: Callable[..., Array], *, groups: bool) -> Callable[..., Array]:
    """Return the gradient of values by that of the dense weight."""

    def compute(
        *, slots: Array, weight_shape: tuple[int, ...], rows: int, shapes: Any, **given: Any
    ) -> Array:
        more = {"groups": 1} if groups else {}
        return gather(product(shapes={"dw": weight_shape}, **given, **more), slots, rows)

    return compute


def attention(
    q: Array, k: Array, v: Array, *, heads: int, causal: bool, **_: Any
) -> tuple[Array, Array]:
    """Return softmax(q k^T / sqrt(features of a head)) v, and the softmax."""
    queries, keys, values = (_heads(it, heads) for it in (q, k, v))
    scores = queries @ keys.swapaxes(2, 3) / math.sqrt(queries.shape[-1])
    if causal:
        ahead = np.triu(np.ones(scores.shape[2:], bool), 1)
        scores = np.where(ahead, -np.inf, scores)
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = grown / grown.sum(axis=-1, keepdims=True)
    return _joined(weights @ values), weights


def attention_gradient(
    q: Array, k: Array, v: Array, weights: Array, dy: Array, *, heads: int, **_: Any
) -> tuple[Array, Array, Array]:
    """Return the gradients of queries, keys and values."""
    queries, keys, values, dout = (_heads(it, heads) for it in (q, k, v, dy))
    dweights = dout @ values.swapaxes(2, 3)
    along = (dweights * weights).sum(axis=-1, keepdims=True)
    dscores = weights * (dweights - along) / math.sqrt(queries.shape[-1])
    dvalues = weights.swapaxes(2, 3) @ dout
    return _joined(dscores @ keys), _joined(dscores.swapaxes(2, 3) @ queries), _joined(dvalues)


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _joined(x: Array) -> Array:
    joined = x.swapaxes(1, 2)
    return joined.reshape(*joined.shape[:2], -1)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "conv2d": lambda shapes, **given: conv2d(**given),
    "conv2d_input_gradient": conv2d_input_gradient,
    "conv2d_weight_gradient": conv2d_weight_gradient,
    "bias_gradient": bias_gradient,
    "sparse_conv2d": _sparse(lambda shapes, **given: conv2d(**given), groups=True),
    "sparse_conv2d_input_gradient": _sparse(conv2d_input_gradient, groups=True),
    "sparse_conv2d_values_gradient": _sparse_gradient(conv2d_weight_gradient, groups=True),
    "linear": linear,
    "linear_input_gradient": linear_input_gradient,
    "linear_weight_gradient": linear_weight_gradient,
    "sparse_linear": _sparse(linear, groups=False),
    "sparse_linear_input_gradient": _sparse(linear_input_gradient, groups=False),
    "sparse_linear_values_gradient": _sparse_gradient(linear_weight_gradient, groups=False),
    "attention": attention,
    "attention_gradient": attention_gradient,
}
