"""Convolutions and linear layers of the native runtime against torch in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import SOME, compute, gradients, near, randn, wide
from torch.nn import functional as F

from mest_fed.nn.slots import gathered, scattered
from mest_fed.sparsity import layout_for


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depthwise = draw(st.booleans()) and groups > 1
    inputs = groups * (1 if depthwise else draw(st.integers(1, 5)))
    outputs = groups * draw(st.integers(1, 6))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = tuple(draw(st.integers(k, 19)) for k in kernel)
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return (draw(st.integers(1, 9)), inputs, *size), outputs, kernel, stride, padding, groups


@SOME
@given(convolutions(), st.booleans())
def test_conv2d_and_its_gradients(case, with_bias):
    shape, outputs, kernel, stride, padding, groups = case
    how = {"stride": stride, "padding": padding, "groups": groups}
    x, w = randn(*shape), randn(outputs, shape[1] // groups, *kernel, seed=1)
    b = randn(outputs, seed=2) if with_bias else None
    x64, w64 = wide(x, w)
    exact = F.conv2d(x64, w64, None if b is None else b.double(), **how)
    dy = randn(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, w64)
    near(compute("conv2d", {"x": x, "w": w, "b": b}, {"y": tuple(exact.shape)}, **how)["y"], exact)
    back = {"w": w, "dy": dy}
    near(compute("conv2d_input_gradient", back, {"dx": shape}, **how)["dx"], dx)
    back = {"x": x, "dy": dy}
    near(compute("conv2d_weight_gradient", back, {"dw": tuple(w.shape)}, **how)["dw"], dw, 1e-4)


@SOME
@given(st.integers(1, 80), st.integers(1, 90), st.integers(1, 20), st.booleans())
def test_linear_and_its_gradients(n, features, outputs, with_bias):
    x, w, dy = randn(n, features), randn(outputs, features, seed=1), randn(n, outputs, seed=3)
    b = randn(outputs, seed=2) if with_bias else None
    y = compute("linear", {"x": x, "w": w, "b": b}, {"y": (n, outputs)})["y"]
    near(y, F.linear(x.double(), w.double(), None if b is None else b.double()))
    dx = compute("linear_input_gradient", {"w": w, "dy": dy}, {"dx": (n, features)})["dx"]
    near(dx, dy.double() @ w.double())
    dw = compute("linear_weight_gradient", {"x": x, "dy": dy}, {"dw": (outputs, features)})["dw"]
    near(dw, dy.double().T @ x.double())


@st.composite
def pooled_convolutions(draw):
    """Up to some vectors of channels, planes of several vectors."""
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 1)))
    size = tuple(draw(st.integers(k + 1, 21)) for k in kernel)
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 40)), *size)
    return shape, draw(st.integers(1, 9)), kernel, padding


def _pooled(x, w, b, padding):
    return F.max_pool2d(torch.relu(F.conv2d(x, w, b, 1, padding)), 2)


@SOME
@given(pooled_convolutions(), st.sampled_from([0, 1, 2, 4]), st.booleans())
def test_conv2d_relu_pool_and_its_gradients(case, rows, with_dx):
    """Of a dense weight (rows 0) and of sparse ones."""
    shape, outputs, kernel, padding = case
    name, weight, how = "conv2d_relu_pool", "w", {"groups": 1}
    x, w, b = randn(*shape), randn(outputs, shape[1], *kernel, seed=1), randn(outputs, seed=2)
    given_ = {"w": w}
    if rows:
        slots, values, dense, layout = _sparse(tuple(w.shape), rows, 0.5)
        w, name, weight = dense.detach().float(), f"sparse_{name}", "values"
        given_ = {"values": values, "slots": slots}
        how = {"weight_shape": tuple(w.shape), "rows": rows}
    how |= {"stride": (1, 1), "padding": padding}
    x64, w64, b64 = wide(x, w, b)
    exact = _pooled(x64, w64, b64, padding)
    size = tuple(exact.shape)
    found = compute(name, {"x": x, "b": b, **given_}, {"y": size, "where": size}, **how)
    near(found["y"], exact)
    dy = randn(*size, seed=3)
    dx, dw, db = gradients(exact, dy, x64, w64, b64)
    to = {f"d{weight}": tuple(given_[weight].shape), "db": (outputs,)}
    to |= {"dx": shape} if with_dx else {}
    back = {"x": x, **given_, "where": found["where"], "dy": dy}
    made = compute(f"{name}_gradient", back, to, **how)
    near(made[f"d{weight}"], gathered(layout, dw, slots) if rows else dw, 1e-4)
    near(made["db"], db, 1e-4)
    if with_dx:
        near(made["dx"], dx)


def _sparse(shape, rows, density):
    """Return slots, values, and the dense weight that they stand for."""
    layout = layout_for("unstructured" if rows == 1 else f"block:{rows}", shape)
    count = layout.count_for(density)
    order = torch.randperm(layout.num_slots, generator=torch.Generator().manual_seed(5))
    slots = order[:count].sort().values.int()
    values = randn(count, layout.width, seed=6)
    dense = scattered(layout, values, slots)
    return slots, gathered(layout, dense, slots), dense.double().requires_grad_(), layout


@SOME
@given(convolutions(), st.sampled_from([1, 2, 4]), st.sampled_from([0.1, 0.5, 1.0]))
def test_sparse_conv2d_and_its_gradients(case, rows, density):
    shape, outputs, kernel, stride, padding, _ = case
    weight = (outputs, shape[1], *kernel)
    slots, values, dense, layout = _sparse(weight, rows, density)
    geometry = {"stride": stride, "padding": padding}
    how = {**geometry, "weight_shape": weight, "rows": rows}
    x = randn(*shape)
    (x64,) = wide(x)
    exact = F.conv2d(x64, dense, **geometry)
    dy = randn(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, dense)
    sparse = {"values": values, "slots": slots}
    y = compute("sparse_conv2d", {"x": x, **sparse}, {"y": tuple(exact.shape)}, **how)["y"]
    near(y, exact)
    back = {**sparse, "dy": dy}
    near(compute("sparse_conv2d_input_gradient", back, {"dx": shape}, **how)["dx"], dx)
    back, to = {"x": x, "slots": slots, "dy": dy}, {"dvalues": tuple(values.shape)}
    dvalues = compute("sparse_conv2d_values_gradient", back, to, **how)["dvalues"]
    near(dvalues, gathered(layout, dw, slots), 1e-4)


@SOME
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 4]))
def test_sparse_linear_and_its_gradients(n, features, outputs, rows):
    weight = (outputs, features)
    slots, values, dense, layout = _sparse(weight, rows, 0.5)
    how = {"weight_shape": weight, "rows": rows}
    x, dy, b = randn(n, features), randn(n, outputs, seed=3), randn(outputs, seed=4)
    given_ = {"x": x, "values": values, "slots": slots, "b": b}
    y = compute("sparse_linear", given_, {"y": (n, outputs)}, **how)["y"]
    near(y, x.double() @ dense.T + b.double())
    back = {"values": values, "slots": slots, "dy": dy}
    to = {"dx": (n, features)}
    near(compute("sparse_linear_input_gradient", back, to, **how)["dx"], dy.double() @ dense)
    back, to = {"x": x, "slots": slots, "dy": dy}, {"dvalues": tuple(values.shape)}
    dvalues = compute("sparse_linear_values_gradient", back, to, **how)["dvalues"]
    near(dvalues, gathered(layout, dy.double().T @ x.double(), slots))


@pytest.mark.parametrize("shape", [(3, 5), (70, 3, 4), (2, 6, 9, 8)])
def test_bias_gradient(shape):
    dy = randn(*shape)
    db = compute("bias_gradient", {"dy": dy}, {"db": (shape[1],)})["db"]
    near(db, dy.double().sum([0, *range(2, len(shape))]))
