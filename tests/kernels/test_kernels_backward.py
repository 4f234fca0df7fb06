"""Both gradients in one pass: what the two separate operators give, and features of 1x1 planes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PLANES, Sizes, every, restride
from kernel_draws import cases

from mest_fed.kernels import ConvGeometry, Kernels, Strips, native, ops, torch_threads

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def granules(case):
    """Return what the operators take of a weight and a geometry."""
    cut, geometry = case.weight.storage, case.geometry
    cells = torch.tensor(cut.cells, dtype=torch.int32) if isinstance(cut, Kernels) else None
    shape = [*case.weight.shape, 1, 1][:4]
    numbers = [*geometry.stride, *geometry.padding, *geometry.dilation]
    return case.weight.slots, cells, getattr(cut, "rows", 1), shape, numbers


def together(case, plane):
    """Return dx and dvalues of the operator that gives both."""
    which = PLANES.index(plane)
    return ops.OPERATORS.conv2d_backward(case.upstream, case.x, case.values, *granules(case), which)


def apart(case, plane):
    """Return dx and dvalues of the two operators that give one each."""
    which, size = PLANES.index(plane), list(case.x.shape)
    return (
        ops.OPERATORS.conv2d_input(case.upstream, case.values, *granules(case), size, which),
        ops.OPERATORS.conv2d_values(case.upstream, case.x, *granules(case), which),
    )


def check_both(case, plane):
    both, single = together(case, plane), apart(case, plane)
    limits = case.tolerances()[1:3]
    expected = case.expected()[1:3]
    for name, a, b, right, most in zip(
        ("dx", "dvalues"), both, single, expected, limits, strict=True
    ):
        assert a.shape == b.shape == right.shape, name
        limit = 0 if case.whole else most
        assert bool(((a.double() - right).abs() <= limit).all()), (name, "at once")
        assert bool(((b.double() - right).abs() <= limit).all()), (name, "alone")


@settings(deadline=None, max_examples=100)
@given(cases(), st.sampled_from(PLANES), st.sampled_from((1, 1, 2, 3)))
def test_both_at_once_are_the_two_alone(case, plane, count):
    with torch_threads(count):
        check_both(case, plane)


def check_bits(case, plane):
    found = []
    for count in (1, 2, 3, 4, 1):
        with torch_threads(count):
            found.append([t.view(torch.int32) for t in together(case, plane)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(PLANES))
def test_any_number_of_threads_gives_the_same_bits(case, plane):
    check_bits(case, plane)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 9, 40])
def test_layers_of_a_usual_size(batch, stride, rows, plane):
    # Single rows at a stride of 1 go back as a convolution; all others share their planes.
    geometry = ConvGeometry((stride, stride), (1, 1))
    sizes = Sizes((24, 18, 3, 3), Strips(rows), (batch, 18, 12, 12), geometry)
    case = sizes.case(sizes.num_granules // 8, seed=batch, whole=True)
    check_both(case, plane)
    check_bits(case, plane)


def test_what_an_earlier_call_left_in_scratch_does_not_show():
    geometry = ConvGeometry((1, 1), (1, 1))
    case = Sizes((8, 3, 3, 3), Strips(4), (20, 3, 8, 8), geometry).case(20, whole=True)
    spoiled = Sizes((8, 9, 3, 3), Strips(4), (20, 9, 12, 12), geometry).case(60)
    spoiled.x.fill_(torch.nan)
    spoiled.upstream.fill_(torch.nan)
    for count in (1, 2, 3):
        with torch_threads(count):
            for plane in PLANES:
                together(spoiled, plane)
                check_both(case, plane)


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(*[st.integers(1, 70)] * 3),
    st.sampled_from((1, 2, 3, 4, 16)),
    st.sampled_from(PLANES),
    st.sampled_from((1, 2, 3)),
    st.sampled_from(("", "strided", "transposed")),
)
def test_features_below_and_above_the_vector_width(numbers, rows, plane, count, how):
    batch, features, outputs = numbers
    sizes = Sizes((outputs, features), Strips(rows), (batch, features))
    active = max(1, sizes.num_granules // (1 + sum(numbers) % 7))
    case = sizes.case(active, seed=sum(numbers), whole=True, strides=(how, "", how))
    with torch_threads(count):
        case.check(case.gradients(every(plane)))
        check_both(case, plane)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("size", [15, 16, 17, 31, 32, 33, 64])
def test_images_of_one_pixel_are_features(size, plane):
    # A 1x1 convolution of 1x1 planes, and the same as a linear layer.
    flat = Sizes((size, size + 3), Strips(4), (size + 1, size + 3)).case(size, whole=True)
    planes = Sizes((size, size + 3, 1, 1), Strips(4), (size + 1, size + 3, 1, 1))
    deep = planes.case(size, whole=True)
    for a, b in zip(flat.gradients(every(plane)), deep.gradients(every(plane)), strict=True):
        assert torch.equal(a.flatten(), b.flatten())
    deep.check(deep.gradients(every(plane)))


def test_a_kernel_larger_than_1x1_over_images_of_one_pixel():
    geometry = ConvGeometry((1, 1), (1, 1))
    for plane in PLANES:
        case = Sizes((20, 18, 3, 3), Strips(4), (35, 18, 1, 1), geometry).case(300, whole=True)
        case.check(case.gradients(every(plane)))
        check_both(case, plane)


def test_a_gradient_without_strides_is_read_right():
    sizes = Sizes((8, 5, 3, 3), Strips(4), (3, 5, 7, 7))
    case = sizes.case(30, whole=True)
    case.upstream = torch.ones(()).expand(case.upstream.shape)
    case.x = restride(case.x, "last")
    for plane in PLANES:
        check_both(case, plane)
    assert math.prod(case.upstream.stride()) == 0
