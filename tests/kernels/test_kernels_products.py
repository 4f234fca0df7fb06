"""All three products of every implementation against dense float64 ones."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PLANES, Sizes, every
from kernel_draws import cases

from mest_fed.kernels import (
    Channels,
    Choice,
    ConvGeometry,
    Strips,
    gather,
    native,
    scatter,
    torch_threads,
)

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


@pytest.mark.soak
@compiled
@settings(deadline=None, max_examples=200)
@given(cases(), st.sampled_from(PLANES), st.sampled_from((1, 1, 2, 3)))
def test_compiled_products_are_the_dense_ones_in_float64(case, plane, count):
    with torch_threads(count):
        case.check(case.gradients(every(plane)))


@settings(deadline=None, max_examples=100)
@given(cases("too"))
def test_the_reference_is_the_dense_product(case):
    case.check(case.gradients(every("dense")))


@pytest.mark.soak
@settings(deadline=None, max_examples=100)
@given(cases("only").filter(lambda case: len(case.weight.slots) > 0))
def test_channel_products_are_the_dense_ones(case):
    case.check(case.gradients(every("channels")))


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3)])
def test_channel_products_without_a_active_channel(shape, axis):
    case = Sizes(shape, Channels(axis), (2, 3, 5, 5)[: len(shape)]).case(0)
    case.check(case.gradients(every("channels")))


@compiled
@settings(deadline=None, max_examples=40)
@given(cases(), st.tuples(*[st.sampled_from(("dense", *PLANES))] * 3))
def test_implementations_mix(case, names):
    case.check(case.gradients(Choice(*names)))


@compiled
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 16])
def test_every_width(rows, plane):
    for width in range(1, 41):
        sizes = Sizes((7, 3, 3, 3), Strips(rows), (3, 3, 3, width), ConvGeometry((1, 1), (1, 1)))
        case = sizes.case(sizes.num_granules // 3, seed=width, whole=True)
        case.check(case.gradients(every(plane)))


@compiled
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (1, 5), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (1, 2), (3, 1)])
def test_every_geometry(kernel, stride, plane):
    for padding, rows in itertools.product([(0, 0), (1, 1), (2, 3), (4, 4), (0, 20)], (1, 4)):
        geometry = ConvGeometry(stride, padding)
        sizes = Sizes((6, 2, *kernel), Strips(rows), (2, 2, 7, 17), geometry)
        case = sizes.case(sizes.num_granules // 2, whole=True)
        case.check(case.gradients(every(plane)))


@compiled
@pytest.mark.parametrize("plane", PLANES)
def test_empty_rows_and_columns(plane):
    sizes = Sizes((12, 5, 3, 3), Strips(4), (2, 5, 6, 20), ConvGeometry((1, 1), (1, 1)))
    case = sizes.case(45, whole=True)  # of 3 strips by 45 columns
    only = torch.arange(45, 90, 9, dtype=torch.int32)  # the middle strip's, one of each channel
    case.weight.slots.resize_(5).copy_(only)
    case.values = case.values[:5]
    case.check(case.gradients(every(plane)))


@compiled
@pytest.mark.parametrize("plane", PLANES)
def test_unused_gradients_are_not_computed(plane):
    sizes = Sizes((4, 3, 3, 3), Strips(2), (2, 3, 6, 6))
    case = sizes.case(9, whole=True)
    y, dx, dvalues, dbias = case.gradients(every(plane))
    assert dbias.shape == (4,)
    # An upstream gradient without strides, as sum() sends.
    case.upstream = torch.ones(()).expand(y.shape)
    case.check(case.gradients(every(plane)))
    assert (dx.shape, dvalues.shape) == (case.x.shape, case.values.shape)


@compiled
@pytest.mark.parametrize("plane", PLANES)
def test_infinite_inputs_stay_in_their_image(plane):
    sizes = Sizes((5, 4), Strips(1), (20, 4))
    case = sizes.case(12, whole=True)
    case.x[3, 1] = torch.inf
    y = case.gradients(every(plane))[0]
    assert y[torch.arange(20) != 3].isfinite().all()


def test_scatter_and_gather_by_hand():
    positions = torch.tensor([[0, 4], [2, 6]])  # 6 is one past the end: padding
    dense = scatter(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), positions, (2, 3))
    assert dense.tolist() == [[1, 0, 3], [0, 2, 0]]
    assert gather(dense, positions).tolist() == [[1, 2], [3, 0]]
