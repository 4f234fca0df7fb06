"""Operators on planes of bfloat16: what they read is exact, so only what they write is rounded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import SOME, compute, gradients, near, randn, wide
from test_native_plane_products import convolutions, granules_of, on
from torch.nn import functional as F

from mest_fed.errors import InputError
from mest_fed.nn.slots import gathered
from mest_fed.runtime.bfloat16 import rounded, widened
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.reference import compute as reference


def narrow(*shape, seed=0):
    """Draw numbers that bfloat16 holds."""
    return randn(*shape, seed=seed).bfloat16().float()


def nearest(got, exact):
    """Compare with exact numbers that were rounded: half of a last bit, and sums' float32."""
    exact = exact.detach().double()
    size = float(exact.abs().max()) + 1
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= exact.abs() * 2**-8 + 2e-5 * size).all())
    assert torch.equal(got, got.bfloat16().float())


def test_rounding_by_hand():
    """1 + 2**-8 lies between two, and so does 1 + 3 * 2**-8: to the even ones; torch agrees."""
    numbers = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0.0, -0.0, np.inf]
    found = widened(rounded(np.array(numbers)))
    assert found.tolist() == [1, 1 + 2**-6, 1 + 2**-7, -1, 0, 0, np.inf]
    assert np.isnan(widened(rounded(np.array([np.nan, -np.nan])))).all()
    none = np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(widened(rounded(none))).all()
    many = randn(1000).exp()
    np.testing.assert_array_equal(widened(rounded(many.numpy())), many.bfloat16().float().numpy())


@pytest.mark.parametrize("size", [(2, 3, 4, 5), (1, 2, 16, 16), (2, 1, 7, 9)])
def test_copies_convert(size):
    x = randn(*size)
    found = compute("copy", {"x": x}, {"y": size}, None, {"y": 1}, bf16="y")["y"]
    assert torch.equal(found, x.bfloat16().float())
    for margin, types in ((0, ["x"]), (2, ["x"]), (1, ["x", "y"]), (2, ["x", "y"])):
        back = compute("copy", {"x": found}, {"y": size}, None, {"x": 1, "y": margin}, bf16=types)
        assert torch.equal(back["y"], found)
    none = torch.full(size, torch.nan)
    assert compute("copy", {"x": none}, {"y": size}, None, {"y": 1}, bf16="y")["y"].isnan().all()


@SOME
@given(convolutions(), st.booleans())
def test_conv2d_and_its_gradients(case, with_bias):
    shape, outputs, kernel, geometry, margins = case
    how = {**geometry, "groups": 1}
    x, w = narrow(*shape), narrow(outputs, shape[1], *kernel, seed=1)
    b = randn(outputs, seed=2) if with_bias else None
    x64, w64 = wide(x, w)
    exact = F.conv2d(x64, w64, None if b is None else b.double(), **geometry)
    dy = narrow(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, w64)
    size, inputs, at = {"y": tuple(exact.shape)}, {"x": x, "w": w, "b": b}, on(margins, "x", "y")
    nearest(compute("conv2d", inputs, size, None, at, bf16="xy", **how)["y"], exact)
    back, at = {"w": w, "dy": dy}, on(margins, "dx", "dy")
    name = "conv2d_input_gradient"
    near(compute(name, back, {"dx": shape}, None, at, bf16=["dy"], **how)["dx"], dx)
    back, at, name = {"x": x, "dy": dy}, on(margins, "x", "dy"), "conv2d_weight_gradient"
    got = compute(name, back, {"dw": tuple(w.shape)}, None, at, bf16=["x", "dy"], **how)["dw"]
    near(got, dw, 1e-4)


@SOME
@given(convolutions(), st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([0.1, 0.5, 1.0]))
def test_sparse_conv2d_and_its_gradients(case, rows, density):
    shape, outputs, kernel, geometry, margins = case
    weight = (outputs, shape[1], *kernel)
    slots, values, dense, layout = granules_of(weight, rows, density, narrow)
    how = {**geometry, "weight_shape": weight, "rows": rows}
    x = narrow(*shape)
    (x64,) = wide(x)
    exact = F.conv2d(x64, dense, **geometry)
    dy = narrow(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, dense)
    granules, size = {"slots": slots, "values": values}, {"y": tuple(exact.shape)}
    inputs, at = {**granules, "x": x}, on(margins, "x", "y")
    nearest(compute("sparse_conv2d", inputs, size, None, at, bf16="xy", **how)["y"], exact)
    back, at = {**granules, "dy": dy}, on(margins, "dx", "dy")
    name = "sparse_conv2d_input_gradient"
    near(compute(name, back, {"dx": shape}, None, at, bf16=["dy"], **how)["dx"], dx)
    back, at = {"x": x, "slots": slots, "dy": dy}, on(margins, "x", "dy")
    name, size = "sparse_conv2d_values_gradient", {"dvalues": tuple(values.shape)}
    got = compute(name, back, size, None, at, bf16=["x", "dy"], **how)["dvalues"]
    near(got, gathered(layout, dw, slots), 1e-4)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6, 16, 16), (2, 6, 19, 17)])
@pytest.mark.parametrize("kind", ["group", "batch"])
def test_norms(kind, shape, more, relu):
    """Forward, again, and back, with and without what is optional."""
    how = {"groups": 2} if kind == "group" else {}
    each = (shape[0], 2) if kind == "group" else (6,)
    channels = {it: randn(6, seed=i) + 1 for i, it in enumerate(("gamma", "beta"))}
    inputs = {"x": narrow(*shape, seed=3), **channels}
    inputs |= {"residual": narrow(*shape, seed=4)} if more else {}
    if kind == "batch":
        inputs |= {"running_mean": torch.zeros(6), "running_variance": torch.ones(6)}
    sizes = {"y": shape, "mean": each, "scale": each}
    with_momentum = {} if kind == "group" else {"momentum": 0.1}
    options = {**how, **with_momentum, "epsilon": 1e-5, "relu": relu}
    found = check(f"{kind}_norm", inputs, sizes, **options)
    known = {it: inputs[it] for it in inputs if "running" not in it}
    known |= {it: found[it] for it in ("mean", "scale")}
    again = check(f"{kind}_norm_apply", known, {"y": shape}, **how, relu=relu)
    assert torch.equal(again["y"], found["y"])
    back = {it: known[it] for it in ("x", "mean", "scale", "gamma")} | {"dy": randn(*shape, seed=5)}
    back |= {"y": found["y"]} if relu else {}
    back |= {"more": randn(*shape, seed=6)} if more else {}
    sizes = {"dx": shape, "dgamma": (6,), "dbeta": (6,)} | ({"dresidual": shape} if more else {})
    check(f"{kind}_norm_gradient", back, sizes, **how, relu=relu)


def check(name, inputs, sizes, **attributes):
    """Compare with the reference in float64; return what was found."""
    kind = OPERATORS[name]
    given = {it: array.double().numpy() for it, array in inputs.items()}
    exact = reference(kind, {**given, **{it: np.zeros(s) for it, s in sizes.items()}}, **attributes)
    margins = dict.fromkeys(kind.planes, 1)
    found = compute(name, inputs, sizes, None, margins, bf16=kind.bf16, **attributes)
    for it in sizes:
        (nearest if it in kind.bf16 else near)(found[it], torch.from_numpy(exact[it]))
    return found


def test_the_mean_of_planes():
    x = narrow(3, 5, 8, 8)
    got = compute("global_average_pool", {"x": x}, {"y": (3, 5)}, None, {"x": 1}, bf16="x")["y"]
    near(got, x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("types", "margins", "message"),
    [
        ("x", {"x": 1, "y": 1}, "y is of float32; allowed: bfloat16 as the others"),
        ("xy", {}, "x is of bfloat16; allowed: float32"),
    ],
)
def test_types_that_are_refused(types, margins, message):
    x, size = narrow(1, 2, 4, 4), {"y": (1, 2, 4, 4), "mean": (1, 1), "scale": (1, 1)}
    inputs = {"x": x, "gamma": torch.ones(2), "beta": torch.ones(2)}
    how = {"groups": 1, "epsilon": 1e-5, "relu": False}
    with pytest.raises(InputError, match=message):
        compute("group_norm", inputs, size, None, margins, bf16=types, **how)
