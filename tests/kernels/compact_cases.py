"""Drawn tensors for compact storage, and the reference without compiled kernels."""

import torch
from hypothesis import strategies as st
from kernel_cases import restride

ELEMENTS = (1, 7, 16, 17, 64, 1024)
#: Enough for several threads.
MANY = torch.randn(40, 9, 31, 33, generator=torch.Generator().manual_seed(6)).relu()


@st.composite
def shapes(draw):
    """Draw (n, c, ...) or (n, features): the plane below, at and above vectors; empty batches."""
    elements = draw(st.sampled_from(ELEMENTS))
    images = draw(st.sampled_from((0, 1, 1, 2, 3, 17)))
    kind = draw(st.sampled_from(("features", "rows", "planes")))
    if kind == "features":
        return images, elements
    channels = draw(st.integers(1, 5))
    side = 32 if elements == 1024 else 8 if elements == 64 else 1
    tail = (side, elements // side) if kind == "planes" else (elements,)
    return images, channels, *tail


@st.composite
def tensors(draw, dtype=torch.float32):
    """Draw numbers: both signs or after a ReLU, of any magnitude, far from zero, any strides."""
    shape = draw(shapes())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(shape, generator=generator, dtype=dtype)
    keep = draw(st.sampled_from((0.0, 0.02, 0.5, 1.0)))
    x = x * (torch.rand(shape, generator=generator) < keep)
    sign = draw(st.sampled_from(("both", "relu", "below")))
    if sign != "both":
        x = x.relu() if sign == "relu" else -x.abs()
    magnitude = 10.0 ** draw(st.sampled_from((0, 0, 0, 3, 20, 36, -5, -30, -38, -43)))
    offset = draw(st.sampled_from((0.0, 0.0, 0.0, 1.0, -50.0)))
    x = (x + offset) * magnitude
    return restride(x, draw(st.sampled_from(("", "", "strided", "transposed", "last"))))


def bits(tensors):
    """Return tensors as integers: NaN equals NaN, and 0.0 differs from -0.0."""
    wide = {torch.float32: torch.int32, torch.float64: torch.int64}
    return [tensor.contiguous().view(wide.get(tensor.dtype, tensor.dtype)) for tensor in tensors]


def same_bits(ours, others):
    """Compare tensors bit by bit."""
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.is_contiguous()
        assert b.is_contiguous()
    return all(torch.equal(a, b) for a, b in zip(bits(ours), bits(others), strict=True))
