"""Convolutions on planes in place against torch in float64; compute() sees to zero margins."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_cases import SOME, compute, gradients, near, one, randn, wide
from torch.nn import functional as F

from mest_fed.errors import InputError
from mest_fed.nn.slots import gathered, scattered
from mest_fed.runtime.native import Runtime
from mest_fed.sparsity import layout_for


@st.composite
def convolutions(draw):
    """Odd kernels at stride 1; 3x3 and 1x1 at stride 2; widths that fill vectors and not."""
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]))
    side = st.sampled_from([1, 3, 3, 5] if stride == (1, 1) else [1, 3])
    kernel = (draw(side), draw(side)) if stride == (1, 1) else (draw(side),) * 2
    size = (draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4, 5, 7, 8, 14, 16, 17, 32, 33])))
    margins = st.integers(max(1, *(it // 2 for it in kernel)), 3)
    geometry = {"stride": stride, "padding": tuple(it // 2 for it in kernel)}
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 5)), *size)
    return shape, draw(st.integers(1, 9)), kernel, geometry, (draw(margins), draw(margins))


def on(margins, *names):
    return dict(zip(names, margins, strict=True))


@SOME
@given(convolutions(), st.booleans())
def test_conv2d_and_its_gradients(case, with_bias):
    shape, outputs, kernel, geometry, margins = case
    how = {**geometry, "groups": 1}
    x, w = randn(*shape), randn(outputs, shape[1], *kernel, seed=1)
    b = randn(outputs, seed=2) if with_bias else None
    x64, w64 = wide(x, w)
    exact = F.conv2d(x64, w64, None if b is None else b.double(), **geometry)
    dy = randn(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, w64)
    size = {"y": tuple(exact.shape)}
    given_x = {"x": x, "w": w, "b": b}
    near(compute("conv2d", given_x, size, None, on(margins, "x", "y"), **how)["y"], exact)
    back, at = {"w": w, "dy": dy}, on(margins, "dx", "dy")
    near(compute("conv2d_input_gradient", back, {"dx": shape}, None, at, **how)["dx"], dx)
    more = {"dx": randn(*shape, seed=7)}
    got = compute("conv2d_input_gradient_added", back, more, None, at, **how)["dx"]
    near(got, dx + more["dx"])
    back, at = {"x": x, "dy": dy}, on(margins, "x", "dy")
    got = compute("conv2d_weight_gradient", back, {"dw": tuple(w.shape)}, None, at, **how)["dw"]
    near(got, dw, 1e-4)
    more = {"dw": randn(*w.shape, seed=7)}
    got = compute("conv2d_weight_gradient_added", back, more, None, at, **how)["dw"]
    near(got, dw + more["dw"], 1e-4)


def granules_of(shape, rows, density, draw=randn):
    """Return slots, values, and the dense weight that they stand for."""
    layout = layout_for("unstructured" if rows == 1 else f"block:{rows}", shape)
    count = layout.count_for(density)
    order = torch.randperm(layout.num_slots, generator=torch.Generator().manual_seed(5))
    slots = order[:count].sort().values.int()
    dense = scattered(layout, draw(count, layout.width, seed=6), slots)
    return slots, gathered(layout, dense, slots), dense.double().requires_grad_(), layout


@SOME
@given(convolutions(), st.sampled_from([1, 2, 4]), st.sampled_from([0.1, 0.5, 1.0]))
def test_sparse_conv2d_and_its_gradients(case, rows, density):
    shape, outputs, kernel, geometry, margins = case
    weight = (outputs, shape[1], *kernel)
    slots, values, dense, layout = granules_of(weight, rows, density)
    how = {**geometry, "weight_shape": weight, "rows": rows}
    x = randn(*shape)
    (x64,) = wide(x)
    exact = F.conv2d(x64, dense, **geometry)
    dy = randn(*exact.shape, seed=3)
    dx, dw = gradients(exact, dy, x64, dense)
    granules, size = {"slots": slots, "values": values}, {"y": tuple(exact.shape)}
    got = compute("sparse_conv2d", {**granules, "x": x}, size, None, on(margins, "x", "y"), **how)
    near(got["y"], exact)
    back, at = {**granules, "dy": dy}, on(margins, "dx", "dy")
    name = "sparse_conv2d_input_gradient"
    near(compute(name, back, {"dx": shape}, None, at, **how)["dx"], dx)
    more = {"dx": randn(*shape, seed=7)}
    near(compute(f"{name}_added", back, more, None, at, **how)["dx"], dx + more["dx"])
    back, at = {"x": x, "slots": slots, "dy": dy}, on(margins, "x", "dy")
    name, size = "sparse_conv2d_values_gradient", {"dvalues": tuple(values.shape)}
    got = compute(name, back, size, None, at, **how)["dvalues"]
    near(got, gathered(layout, dw, slots), 1e-4)
    more = {"dvalues": randn(*values.shape, seed=7)}
    got = compute(f"{name}_added", back, more, None, at, **how)["dvalues"]
    near(got, gathered(layout, dw, slots) + more["dvalues"], 1e-4)


def a_convolution(**changes):
    """Return a program of one sparse convolution of 3 -> 4 channels on planes of 5 x 6."""
    how = {"stride": (1, 1), "padding": (1, 1), "weight_shape": (4, 3, 3, 3), "rows": 4, **changes}
    inputs = {"x": (1, 3, 5, 6), "slots": (2,), "values": (2, how["rows"]), "b": None}
    shape = [(size + 2 * how["padding"][0] - 3) // how["stride"][0] + 1 for size in (5, 6)]
    program = one("sparse_conv2d", inputs, {"y": (1, 4, *shape)}, **how)
    for it in program.buffers:
        it.margin = 1 if it.name in "xy" else 0
    return program


def runtime_of(program):
    return Runtime(program, {number: 8192 * number for number in range(4)}, 8192 * 4)


def test_granules_that_change_between_two_runs():
    """The lists of entries are laid out anew, also after slots that were refused."""
    runtime = runtime_of(a_convolution())
    runtime.write("x", torch.ones(1, 3, 5, 6).numpy())
    runtime.write("values", torch.ones(2, 4).numpy())
    for slots, middle in (((0, 1), 2.0), ((0, 1), 2.0), ((3, 26), 2.0), ((26, -1), 1.0)):
        runtime.write("slots", torch.tensor(slots).int().numpy())
        runtime.run()
        assert (runtime.read("y")[:, :, 1:4, 1:5] == middle).all()
    first = runtime.read("y")
    assert (first[0, :, 0] == [[1, 1, 1, 1, 1, 0]] * 4).all()  # tap (2, 2) of the third channel
    runtime.write("slots", torch.tensor((5, 5)).int().numpy())
    with pytest.raises(InputError, match="slots must increase"):
        runtime.run()
    runtime.write("slots", torch.tensor((26, -1)).int().numpy())
    runtime.run()
    assert runtime.read("y").tobytes() == first.tobytes()


@pytest.mark.parametrize(
    ("changes", "margins", "message"),
    [
        ({"padding": (0, 0)}, {}, "padding of planes with margins; allowed: half"),
        ({"stride": (1, 1)}, {"y": 0}, "margins 1 and 0; allowed: both"),
        ({"weight_shape": (4, 3, 5, 5), "padding": (2, 2)}, {}, "a margin of 1; allowed: 2"),
    ],
)
def test_what_planes_in_place_cannot_do(changes, margins, message):
    program = a_convolution(**changes)
    for it in program.buffers:
        it.margin = margins.get(it.name, it.margin)
    if "weight_shape" in changes:
        program.buffers[-1].shape = (1, 4, 5, 6)
    with pytest.raises(InputError, match=message):
        runtime_of(program)
