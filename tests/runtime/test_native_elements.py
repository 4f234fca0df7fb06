"""What the cases of all operators leave out: sizes that threads share, dropout, hostile codes."""

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


@SOME
@given(st.sampled_from([(1, 2), (7, 10), (3, 5, 300)]), st.booleans())
def test_cross_entropy(shape, in_place):
    logits = 10 * randn(*shape)
    targets = torch.arange(logits[..., 0].numel()).view(shape[:-1]) % shape[-1]
    (logits64,) = wide(logits)
    exact = F.cross_entropy(logits64.flatten(0, -2), targets.flatten())
    to = {"loss": (), "probabilities": shape}
    over = {"probabilities": "logits"} if in_place else {}
    share = torch.tensor([1 / targets.numel()])
    got = compute("cross_entropy", {"logits": logits, "targets": targets, "share": share}, to, over)
    near(got["loss"], exact)
    near(got["probabilities"], logits64.softmax(-1))
    back = {"probabilities": got["probabilities"], "targets": targets, "share": share}
    over = {"dlogits": "probabilities"} if in_place else {}
    made = compute("cross_entropy_gradient", back, {"dlogits": shape}, over)["dlogits"]
    near(made, torch.autograd.grad(exact, logits64)[0])


def test_a_code_that_is_no_place_is_passed_over():
    where, dy = torch.tensor([[[[255]]]], dtype=torch.uint8), torch.ones(1, 1, 1, 1)
    how = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil": False}
    dx = compute("max_pool2d_gradient", {"where": where, "dy": dy}, {"dx": (1, 1, 2, 2)}, **how)
    assert np.all(dx["dx"].numpy() == 0)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_maximum_of_wide_planes(stride):
    """Rows past a run of windows, edges beside it, equals, infinities and NaN."""
    x = randn(2, 3, 5, 151).round()
    x[0, 0, 1:4, 20:30], x[1, 0, :, 70:80] = float("nan"), -float("inf")
    how = {"kernel": (2, 3), "stride": (2, stride), "padding": (1, 1)}
    y, at = F.max_pool2d(x, *how.values(), return_indices=True)
    outputs = {"y": tuple(y.shape), "where": tuple(y.shape)}
    got = compute("max_pool2d", {"x": x}, outputs, **how, ceil=False)
    np.testing.assert_array_equal(got["y"].numpy(), y.numpy())
    rows = torch.arange(y.shape[2])[:, None] * 2 - 1
    columns = torch.arange(y.shape[3]) * stride - 1
    where = (at // 151 - rows) * 3 + at % 151 - columns
    held = ~y.isnan()  # of several NaN, any
    assert torch.equal(got["where"].long()[held], where[held])


def test_a_zero_slope_stops_what_is_no_number():
    y, dy = torch.tensor([-1.0, 0.0, 2.0] * 7), torch.tensor([float("nan"), float("inf"), 3.0] * 7)
    dx = compute("relu_gradient", {"y": y, "dy": dy}, {"dx": (21,)}, {"dx": "dy"})["dx"]
    assert dx.tolist() == [0.0, 0.0, 3.0] * 7
