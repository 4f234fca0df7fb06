"""LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014), as torch has them, in NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.runtime.reference_elementwise import sigmoid

Array = NDArray[Any]


def _hidden_share(h: Array, u: Array, bias: Array | None) -> Array:
    share: Array = h @ u.T
    return share if bias is None else share + bias


def _before(y: Array) -> Array:
    """Return the state before each position; zero before the first."""
    return np.concatenate((np.zeros_like(y[:, :1]), y[:, :-1]), axis=1)


def lstm(x: Array, u: Array, bias: Array | None = None, **_: Any) -> tuple[Array, Array, Array]:
    """Return hidden states, gates and cell states."""
    examples, length, width = x.shape
    hidden = width // 4
    y, cells = (np.zeros((examples, length, hidden), x.dtype) for _ in range(2))
    gates = np.zeros_like(x)
    h = c = np.zeros((examples, hidden), x.dtype)
    for t in range(length):
        i, f, g, o = np.split(x[:, t] + _hidden_share(h, u, bias), 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        y[:, t], cells[:, t], gates[:, t] = h, c, np.concatenate((i, f, g, o), axis=1)
    return y, gates, cells


def lstm_gradient(
    u: Array, y: Array, gates: Array, cells: Array, dy: Array, **_: Any
) -> tuple[Array, Array, Array]:
    """Return the gradients of the input's share, of the recurrent weight and of its bias."""
    dx, before = np.zeros_like(gates), _before(cells)
    dh = dc = np.zeros_like(dy[:, 0])
    for t in reversed(range(dy.shape[1])):
        i, f, g, o = np.split(gates[:, t], 4, axis=1)
        dh = dy[:, t] + dh
        bounded = np.tanh(cells[:, t])
        dc = dc + dh * o * (1 - np.square(bounded))
        dx[:, t] = np.concatenate(
            (
                dc * g * i * (1 - i),
                dc * before[:, t] * f * (1 - f),
                dc * i * (1 - np.square(g)),
                dh * bounded * o * (1 - o),
            ),
            axis=1,
        )
        dh, dc = dx[:, t] @ u, dc * f
    return dx, np.einsum("ntg,nth->gh", dx, _before(y)), dx.sum(axis=(0, 1))


def gru(x: Array, u: Array, bias: Array | None = None, **_: Any) -> tuple[Array, Array, Array]:
    """Return hidden states, gates, and the hidden state's share of the new gate."""
    examples, length, width = x.shape
    hidden = width // 3
    y, candidates = (np.zeros((examples, length, hidden), x.dtype) for _ in range(2))
    gates, h = np.zeros_like(x), np.zeros((examples, hidden), x.dtype)
    for t in range(length):
        share = _hidden_share(h, u, bias)
        both = sigmoid(x[:, t, : 2 * hidden] + share[:, : 2 * hidden])
        r, z, candidate = both[:, :hidden], both[:, hidden:], share[:, 2 * hidden :]
        n = np.tanh(x[:, t, 2 * hidden :] + r * candidate)
        h = (1 - z) * n + z * h
        y[:, t], candidates[:, t] = h, candidate
        gates[:, t] = np.concatenate((r, z, n), axis=1)
    return y, gates, candidates


def gru_gradient(
    u: Array, y: Array, gates: Array, candidate: Array, dy: Array, **_: Any
) -> tuple[Array, Array, Array]:
    """Return the gradients of the input's share, of the recurrent weight and of its bias."""
    dx, of_share, before = np.zeros_like(gates), np.zeros_like(gates), _before(y)
    dh = np.zeros_like(dy[:, 0])
    for t in reversed(range(dy.shape[1])):
        r, z, n = np.split(gates[:, t], 3, axis=1)
        dh = dy[:, t] + dh
        dn = dh * (1 - z) * (1 - np.square(n))
        dz = dh * (before[:, t] - n) * z * (1 - z)
        dr = dn * candidate[:, t] * r * (1 - r)
        dx[:, t] = np.concatenate((dr, dz, dn), axis=1)
        of_share[:, t] = np.concatenate((dr, dz, dn * r), axis=1)
        dh = dh * z + of_share[:, t] @ u
    du = np.einsum("ntg,nth->gh", of_share, before)
    return dx, du, of_share.sum(axis=(0, 1))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "lstm": lstm,
    "lstm_gradient": lstm_gradient,
    "gru": gru,
    "gru_gradient": gru_gradient,
}
