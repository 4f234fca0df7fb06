"""Floats without their zeros: what comes back, the same bits from everyone, and what is refused."""

import pytest
import torch
from compact_cases import MANY, same_bits, tensors
from compact_cases import bits as as_integers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mest_fed.kernels import compact_reference, native, torch_threads
from mest_fed.kernels.compact import pack_nonzeros, unpack_nonzeros

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def positive_zeros(x):
    """Return the same with 0.0 for -0.0."""
    return torch.where(x == 0, 0, x).contiguous()


def check(x):
    """Pack a tensor by its definition, and bring all and some of its images back."""
    bits, values, starts = pack_nonzeros(x)
    images, elements = x.shape[0], x[0].numel() if len(x) else x.new_empty(1, *x.shape[1:]).numel()
    flat = x.reshape(images, elements)
    assert (bits.dtype, bits.shape) == (torch.uint8, (images, (elements + 7) // 8))
    for image, row in zip(flat, bits.tolist(), strict=True):
        ones = [i for i in range(len(row) * 8) if row[i // 8] >> i % 8 & 1]
        assert ones == image.nonzero().flatten().tolist()
    assert same_bits([values], [flat[flat != 0]])
    assert starts.dtype == torch.int64
    assert starts.tolist() == [0, *(flat != 0).sum(1).cumsum(0).tolist()]
    assert same_bits([unpack_nonzeros(bits, values, starts, x.shape)], [positive_zeros(x)])


@settings(deadline=None, max_examples=100)
@given(tensors())
def test_what_is_not_zero_comes_back_exactly(x):
    check(x)


@settings(deadline=None, max_examples=40)
@given(tensors(), st.sampled_from((torch.float64, torch.bfloat16, torch.float16)))
def test_other_floats_come_back_as_they_are(x, dtype):
    parts = pack_nonzeros(x.to(dtype))
    assert torch.equal(unpack_nonzeros(*parts, x.shape).nan_to_num(), x.to(dtype).nan_to_num())


@pytest.mark.parametrize("length", [*range(1, 27), *range(60, 69), 127, 128, 129])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.9, 1.0])
def test_every_length(length, density):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(3, length, generator=generator)
    check(x * (torch.rand(x.shape, generator=generator) < density))


@compiled
@settings(deadline=None, max_examples=100)
@given(tensors(), st.integers(0, 17), st.integers(0, 17))
def test_torch_gives_the_same_bits(x, one, other):
    first, last = sorted(min(number, x.shape[0]) for number in (one, other))
    parts = pack_nonzeros(x)
    assert same_bits(parts, compact_reference.pack_nonzeros(x))
    some = unpack_nonzeros(*parts, x.shape, first=first, last=last)
    assert same_bits([some], [positive_zeros(x[first:last])])
    assert same_bits([some], [compact_reference.unpack_nonzeros(parts, x.shape, first, last)])


@settings(deadline=None, max_examples=40)
@given(tensors())
@example(MANY)
def test_any_number_of_threads_gives_the_same_bits(x):
    with torch_threads(1):
        first = pack_nonzeros(x)
    for count in (2, 3, 4):
        with torch_threads(count):
            again = pack_nonzeros(x)
            assert same_bits(again, first), count
            assert same_bits([unpack_nonzeros(*again, x.shape)], [positive_zeros(x)])


def test_special_floats_keep_their_bits():
    words = [0x7FC00000, 0x7FC12345, -0x400000, 0x7F800000, -0x800000, 1, -0x7FFFFFFF, 0x7FA00001]
    words = torch.tensor([*words, 0, -(2**31)] * 13, dtype=torch.int32).view(2, -1)
    x = words.view(torch.float32)
    back = unpack_nonzeros(*pack_nonzeros(x), x.shape)
    expected = torch.where(words == -(2**31), 0, words)
    assert torch.equal(as_integers([back])[0], expected)


@pytest.mark.parametrize("shape", [(0,), (5,), (0, 3), (3, 0), (2, 3, 0), (0, 0), (0, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_and_empty_shapes(shape, dtype):
    x = torch.ones(shape, dtype=dtype)
    parts = pack_nonzeros(x)
    assert same_bits([unpack_nonzeros(*parts, shape)], [x])
    assert len(parts[1]) == x.numel()
    assert len(parts[2]) == shape[0] + 1


def test_nothing_is_differentiated():
    x = torch.randn(2, 3, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in pack_nonzeros(x))
