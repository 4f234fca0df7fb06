"""Activations, sums, pools, tokens, loss and updates of the native runtime against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import SOME, compute, gradients, near, randn, wide
from torch.nn import functional as F

SHAPES = st.sampled_from([(), (1,), (3, 5), (17, 1000), (2, 3, 4, 5)])
ACTIVATIONS = {
    "relu": (F.relu, "y"),
    "relu6": (F.relu6, "y"),
    "silu": (F.silu, "x"),
    "gelu": (F.gelu, "x"),
    "hard_swish": (F.hardswish, "x"),
}


@SOME
@given(st.sampled_from(list(ACTIVATIONS)), SHAPES, st.booleans())
def test_activations(name, shape, in_place):
    function, kept = ACTIVATIONS[name]
    x, dy = 4 * randn(*shape), randn(*shape, seed=1)
    (x64,) = wide(x)
    exact = function(x64)
    y = compute(name, {"x": x}, {"y": shape}, {"y": "x"} if in_place else {})["y"]
    near(y, exact)
    inputs = {kept: x if kept == "x" else y, "dy": dy}
    for over in ({}, {"dx": "dy"}, {"dx": kept}):
        dx = compute(f"{name}_gradient", inputs, {"dx": shape}, over)["dx"]
        near(dx, gradients(function(x64), dy, x64)[0])


@SOME
@given(SHAPES)
def test_sums_and_products(shape):
    a, b = randn(*shape), randn(*shape, seed=1)
    for over in ({}, {"c": "a"}, {"c": "b"}):
        assert torch.equal(compute("add", {"a": a, "b": b}, {"c": shape}, over)["c"], a + b)
        assert torch.equal(compute("multiply", {"a": a, "b": b}, {"c": shape}, over)["c"], a * b)
    assert torch.equal(compute("accumulate", {"a": a}, {"into": b})["into"], a + b)


def test_dropout_draws_words_of_splitmix64():
    x, seed = torch.ones(4), torch.tensor([1234567])
    got = compute("dropout", {"x": x, "seed": seed}, {"y": (4,), "kept": (4,)}, probability=0.5)
    # The published first words of this seed.
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    kept = [word >> 40 >= 2**23 for word in words]
    assert got["kept"].tolist() == kept
    assert got["y"].tolist() == [2.0 * it for it in kept]
    dx = compute("dropout_gradient", {"kept": got["kept"], "dy": x}, {"dx": (4,)}, probability=0.5)
    assert torch.equal(dx["dx"], got["y"])


@pytest.mark.parametrize("seed", [-1, 0, 2**63 - 1])
def test_dropout_drops_its_share(seed):
    shape = (50000,)
    inputs = {"x": torch.ones(shape), "seed": torch.tensor([seed])}
    got = compute("dropout", inputs, {"y": shape, "kept": shape}, {"y": "x"}, probability=0.25)
    assert abs(float(got["kept"].float().mean()) - 0.75) < 0.01


@st.composite
def pools(draw):
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(draw(st.integers(k, 9)) for k in kernel)
    return (draw(st.integers(1, 3)), 2, *size), {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
    }


@SOME
@given(pools(), st.booleans())
def test_max_pool(case, ceil):
    shape, how = case
    x = randn(*shape).round(decimals=1)  # with equals
    (x64,) = wide(x)
    exact = F.max_pool2d(x64, how["kernel"], how["stride"], how["padding"], ceil_mode=ceil)
    pooled = tuple(exact.shape)
    got = compute("max_pool2d", {"x": x}, {"y": pooled, "where": pooled}, **how, ceil=ceil)
    assert torch.equal(got["y"], exact.float())
    dy = randn(*pooled, seed=1)
    back = {"where": got["where"], "dy": dy}
    dx = compute("max_pool2d_gradient", back, {"dx": shape}, **how, ceil=ceil)["dx"]
    near(dx, gradients(exact, dy, x64)[0])


@SOME
@given(pools())
def test_average_pool(case):
    shape, how = case
    x = randn(*shape)
    (x64,) = wide(x)
    exact = F.avg_pool2d(x64, how["kernel"], how["stride"], how["padding"])
    near(compute("average_pool2d", {"x": x}, {"y": tuple(exact.shape)}, **how)["y"], exact)
    dy = randn(*exact.shape, seed=1)
    dx = compute("average_pool2d_gradient", {"dy": dy}, {"dx": shape}, **how)["dx"]
    near(dx, gradients(exact, dy, x64)[0])


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [("global_average_pool", (3, 5, 7, 2), (2, 3)), ("sequence_mean", (3, 5, 7), (1,))],
)
def test_means(name, shape, axes):
    x = randn(*shape)
    (x64,) = wide(x)
    exact = x64.mean(axes)
    near(compute(name, {"x": x}, {"y": tuple(exact.shape)})["y"], exact)
    dy = randn(*exact.shape, seed=1)
    dx = compute(f"{name}_gradient", {"dy": dy}, {"dx": shape})["dx"]
    near(dx, gradients(exact, dy, x64)[0])


def test_moves():
    x = randn(4, 2, 9)
    for over in ({}, {"y": "x"}):
        assert torch.equal(compute("reshape", {"x": x}, {"y": (8, 9)}, over)["y"], x.view(8, 9))
    parts = compute("split", {"x": x}, {"a": (4, 2, 3), "b": (4, 2, 3), "c": (4, 2, 3)})
    for name, part in zip("abc", x.chunk(3, -1), strict=True):
        assert torch.equal(parts[name], part)
    back = {f"d{name}": parts[name] for name in "abc"}
    assert torch.equal(compute("split_gradient", back, {"dx": (4, 2, 9)})["dx"], x)


def test_embedding_and_positions():
    table, indices = randn(5, 3), torch.tensor([[0, 4, 4], [1, 0, 2]])
    y = compute("embedding", {"indices": indices, "table": table}, {"y": (2, 3, 3)})["y"]
    assert torch.equal(y, table[indices])
    dy = randn(2, 3, 3, seed=1)
    back = {"indices": indices, "dy": dy}
    dtable = compute("embedding_gradient", back, {"dtable": (5, 3)})["dtable"]
    near(dtable, torch.zeros(5, 3).index_put((indices,), dy, accumulate=True))
    moved = compute("add_positions", {"x": y, "table": table}, {"y": (2, 3, 3)}, {"y": "x"})["y"]
    assert torch.equal(moved, y + table[:3])
    dtable = compute("add_positions_gradient", {"dy": dy}, {"dtable": (5, 3)})["dtable"]
    near(dtable, torch.cat([dy.sum(0), torch.zeros(2, 3)]))


@SOME
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_attention(examples, length, source, heads, causal):
    width = 4 * heads
    q, dy = randn(examples, length, width), randn(examples, length, width, seed=1)
    k, v = randn(examples, source, width, seed=2), randn(examples, source, width, seed=3)
    leaves = wide(q, k, v)
    split = [it.view(examples, -1, heads, 4).transpose(1, 2) for it in leaves]
    exact = F.scaled_dot_product_attention(*split, is_causal=causal)
    exact = exact.transpose(1, 2).reshape(q.shape)
    how = {"heads": heads, "causal": causal}
    to = {"y": tuple(q.shape), "weights": (examples, heads, length, source)}
    got = compute("attention", {"q": q, "k": k, "v": v}, to, **how)
    near(got["y"], exact)
    back = {"q": q, "k": k, "v": v, "weights": got["weights"], "dy": dy}
    to = {"dq": tuple(q.shape), "dk": tuple(k.shape), "dv": tuple(k.shape)}
    made = compute("attention_gradient", back, to, **how)
    for key, expected in zip(to, gradients(exact, dy, *leaves), strict=True):
        near(made[key], expected)


@SOME
@given(st.sampled_from([(1, 2), (7, 10), (3, 5, 300)]), st.booleans())
def test_cross_entropy(shape, in_place):
    logits = 10 * randn(*shape)
    targets = torch.arange(logits[..., 0].numel()).view(shape[:-1]) % shape[-1]
    (logits64,) = wide(logits)
    exact = F.cross_entropy(logits64.flatten(0, -2), targets.flatten())
    to = {"loss": (), "probabilities": shape}
    over = {"probabilities": "logits"} if in_place else {}
    got = compute("cross_entropy", {"logits": logits, "targets": targets}, to, over)
    near(got["loss"], exact)
    near(got["probabilities"], logits64.softmax(-1))
    back = {"probabilities": got["probabilities"], "targets": targets}
    over = {"dlogits": "probabilities"} if in_place else {}
    made = compute("cross_entropy_gradient", back, {"dlogits": shape}, over)["dlogits"]
    near(made, torch.autograd.grad(exact, logits64)[0])


@pytest.mark.parametrize("how", [(0.0, False, 0.0), (0.9, False, 1e-2), (0.9, True, 1e-2)], ids=str)
def test_sgd(how):
    momentum, nesterov, decay = how
    p = randn(3, 7)
    leaf = p.double().clone().requires_grad_()
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    optimizer = torch.optim.SGD([leaf], 0.1, **options)
    buffer = torch.zeros(3, 7) if momentum else None
    for seed in range(3):
        g = randn(3, 7, seed=seed)
        leaf.grad = g.double()
        optimizer.step()
        rates = torch.tensor([0.1])
        given_ = {"gradient": g, "rates": rates, "parameter": p, "momentum_buffer": buffer}
        got = compute("sgd", given_, {}, **options)
        p, buffer = got["parameter"], got.get("momentum_buffer")
        near(p, leaf)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled):
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    p, g = randn(3, 7), [randn(3, 7, seed=seed) for seed in range(3)]
    leaf = p.double().clone().requires_grad_()
    optimizer = kind([leaf], 0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.02)
    held = {"parameter": p, "first": torch.zeros(3, 7), "second": torch.zeros(3, 7)}
    held["step"] = torch.tensor([0])
    how = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.02}
    for gradient in g:
        leaf.grad = gradient.double()
        optimizer.step()
        inputs = {"gradient": gradient, "rates": torch.tensor([0.1]), **held}
        got = compute("adam", inputs, {}, **how, decoupled=decoupled)
        held = {name: got[name] for name in held}
        near(held["parameter"], leaf)
    assert held["step"].tolist() == [3]


def test_a_code_that_is_no_place_is_passed_over():
    where, dy = torch.tensor([[[[255]]]], dtype=torch.uint8), torch.ones(1, 1, 1, 1)
    how = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
    dx = compute("max_pool2d_gradient", {"where": where, "dy": dy}, {"dx": (1, 1, 2, 2)}, **how)
    assert np.all(dx["dx"].numpy() == 0)
