"""Sequences longer than a block of the loops, with tails of every kind: attention, layer norm."""

import pytest
import torch
from native_cases import compute, gradients, near, randn, wide
from torch.nn import functional as F

EPSILON = 1e-5


def split_heads(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attend(q, k, v, heads, *, causal):
    """Return torch's output and weights, without its kernel."""
    scores = split_heads(q, heads) @ split_heads(k, heads).transpose(2, 3)
    scores = scores / (q.shape[2] // heads) ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
    weights = scores.softmax(-1)
    return (weights @ split_heads(v, heads)).transpose(1, 2).flatten(2), weights


@pytest.mark.parametrize(
    ("length", "source", "heads", "width", "causal"),
    [
        (37, 37, 2, 5, True),
        (70, 70, 1, 20, True),
        (70, 33, 3, 16, False),
        (1, 65, 2, 33, False),
        (35, 1, 1, 1, False),
        (40, 19, 1, 8, True),
    ],
)
def test_attention(length, source, heads, width, causal):
    features = heads * width
    q, dy = randn(2, length, features), randn(2, length, features, seed=1)
    k, v = 2 * randn(2, source, features, seed=2), randn(2, source, features, seed=3)
    leaves = wide(q, k, v)
    exact, weights = attend(*leaves, heads, causal=causal)
    how = {"heads": heads, "causal": int(causal)}
    given = {"q": q, "k": k, "v": v}
    got = compute("attention", given, {"y": q.shape, "weights": weights.shape}, **how)
    near(got["y"], exact)
    near(got["weights"], weights, 1e-6)
    if causal:
        assert not got["weights"].triu(1).any()
    given |= {"weights": got["weights"], "dy": dy}
    wanted = {"dq": q.shape, "dk": k.shape, "dv": v.shape}
    back = compute("attention_gradient", given, wanted, **how)
    for name, it in zip(wanted, gradients(exact, dy, *leaves), strict=True):
        near(back[name], it)


@pytest.mark.parametrize(("rows", "size"), [(200, 70), (64, 32), (65, 1), (3, 1500)])
def test_layer_norm_of_many_rows(rows, size):
    x, dy = 3 + randn(rows, size), randn(rows, size, seed=1)
    gamma, beta = 1 + randn(size, seed=2) / 3, randn(size, seed=3)
    leaves = wide(x, gamma, beta)
    exact = F.layer_norm(leaves[0], (size,), leaves[1], leaves[2], EPSILON)
    given = {"x": x, "gamma": gamma, "beta": beta}
    outputs = {"y": x.shape, "mean": (rows,), "scale": (rows,)}
    got = compute("layer_norm", given, outputs, axes=1, epsilon=EPSILON)
    near(got["y"], exact)
    back = {"x": x, "mean": got["mean"], "scale": got["scale"], "gamma": gamma, "dy": dy}
    wanted = {"dx": x.shape, "dgamma": gamma.shape, "dbeta": beta.shape}
    made = compute("layer_norm_gradient", back, wanted, axes=1)
    for name, it in zip(wanted, gradients(exact, dy, *leaves), strict=True):
        near(made[name], it)
