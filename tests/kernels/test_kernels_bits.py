"""The same bits for any number of threads, at every repetition, and for both planes where said."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import PLANES, Sizes, every
from kernel_draws import cases

from mest_fed.kernels import ConvGeometry, Kernels, Strips, native, torch_threads

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled kernels")
NAMES = ("y", "dx", "dvalues", "dbias")


def bits(tensors):
    """Return tensors as integers: NaN equals NaN, and 0.0 differs from -0.0."""
    return [tensor.contiguous().view(torch.int32) for tensor in tensors]


def check_same(case, plane, counts=(1, 2, 3, 4)):
    with torch_threads(counts[0]):
        first = bits(case.gradients(every(plane)))
    for count in counts:
        with torch_threads(count):
            again = bits(case.gradients(every(plane)))
        for name, a, b in zip(NAMES, first, again, strict=False):
            assert torch.equal(a, b), (name, count)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(PLANES))
def test_any_number_of_threads_gives_the_same_bits(case, plane):
    check_same(case, plane, (1, 2, 3, 4, 1))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("batch", [1, 9, 64])
def test_layers_of_a_usual_size(batch, rows, plane):
    sizes = Sizes((40, 24, 3, 3), Strips(rows), (batch, 24, 16, 16), ConvGeometry((1, 1), (1, 1)))
    check_same(sizes.case(sizes.num_granules // 10), plane)


def test_threads_that_take_several_turns_start_from_clean_scratch():
    # 8 chunks of images for 2 or 3 threads: the team is called several times in one product, and
    # a thread that found no work at first may come to some later. What it left in its scratch
    # memory in the call before must not show.
    geometry = ConvGeometry((1, 1), (1, 1))
    case = Sizes((4, 3, 3, 3), Strips(2), (40, 3, 16, 16), geometry).case(10, whole=True)
    spoiled = Sizes((4, 12, 3, 3), Strips(2), (40, 12, 20, 20), geometry).case(10)
    spoiled.x.fill_(torch.nan)
    spoiled.upstream.fill_(torch.nan)
    expected = case.expected()[2]
    for count in (2, 3):
        with torch_threads(count):
            for _ in range(30):
                spoiled.gradients(every("shifted"))
                assert torch.equal(case.gradients(every("padded"))[2].double(), expected)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_both_planes_give_the_same_bits_forward(case):
    one, other = (bits(case.gradients(every(plane))[:1]) for plane in PLANES)
    assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("cut", [Strips(1), Kernels(((0, 1, 4), (4, 5, 8)))])
def test_both_planes_give_the_same_bits_back_where_that_is_a_convolution(cut):
    sizes = Sizes((20, 9, 3, 3), cut, (3, 9, 16, 16), ConvGeometry((1, 1), (1, 1)))
    case = sizes.case(sizes.num_granules // 4)
    one, other = (bits(case.gradients(every(plane))) for plane in PLANES)
    assert torch.equal(one[1], other[1])
