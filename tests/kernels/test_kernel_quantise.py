"""Eight bits a number: how far off it comes back, and the same bits from everyone."""

import os
import subprocess
import sys

import pytest
import torch
from compact_cases import ELEMENTS, MANY, bits, same_bits, tensors
from hypothesis import example, given, settings

from mest_fed.kernels import compact_reference, native, torch_threads
from mest_fed.kernels.compact import dequantise, quantise

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def stored(x):
    """Return codes, levels and what comes back."""
    codes, levels = quantise(x)
    return codes, levels, dequantise(codes, levels)


def as_planes(x):
    """View a tensor as (planes, elements)."""
    planes = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
    return x.reshape(planes, -1)


def check(x):
    """Compare what comes back with what was stored, in float64."""
    codes, levels, back = stored(x)
    assert (codes.shape, codes.dtype) == (x.shape, torch.uint8)
    assert (back.shape, back.dtype, levels.dtype) == (x.shape, x.dtype, x.dtype)
    if x.numel() == 0:
        return
    flat, low, step = as_planes(x).double(), *levels.double().unsqueeze(2).unbind(1)
    high = flat.amax(1, keepdim=True)
    assert torch.equal(low, flat.amin(1, keepdim=True))
    ideal = (high - low) / 255
    assert torch.equal(step == 0, ideal == 0)
    assert bool((step >= ideal * (1 - 1e-6)).all())
    assert bool((step <= (ideal * 1.0001).clamp(min=2.0**-110)).all())
    off = (as_planes(back).double() - flat).abs()
    info = torch.finfo(x.dtype)
    rounding = info.eps / 2 * torch.maximum(high.abs(), low.abs()) + info.smallest_normal * info.eps
    assert bool((off <= step / 2 * 1.0002 + rounding).all())
    assert bool((off[flat == low] == 0).all())


@settings(deadline=None, max_examples=150)
@given(tensors())
def test_numbers_come_back_within_half_a_step(x):
    check(x)


@settings(deadline=None, max_examples=40)
@given(tensors(torch.float64))
def test_numbers_of_float64_come_back_as_float64(x):
    check(x)


@compiled
@settings(deadline=None, max_examples=150)
@given(tensors())
def test_torch_gives_the_same_bits(x):
    codes, levels, back = stored(x)
    other = compact_reference.quantise(x)
    assert same_bits([codes, levels, back], [*other, compact_reference.dequantise(*other)])


@settings(deadline=None, max_examples=40)
@given(tensors())
@example(MANY)
def test_any_number_of_threads_gives_the_same_bits(x):
    with torch_threads(1):
        first = stored(x)
    for count in (2, 3, 4):
        with torch_threads(count):
            assert same_bits(stored(x), first), count


# Prints a checksum of what is stored of numbers that are rounded everywhere.
STORE = """
import torch
from mest_fed.kernels.compact import dequantise, quantise
generator = torch.Generator().manual_seed(5)
total = 0
for size in (1, 7, 16, 17, 64, 1000):
    scale = (torch.arange(300).view(-1, 1, 1) / 9 - 20).exp()
    x = torch.randn(300, 3, size, generator=generator) * scale
    codes, levels = quantise(x)
    for part in (codes.int(), levels, dequantise(codes, levels)):
        flat = part.view(torch.int32).flatten().long()
        total += int((flat * torch.arange(1, len(flat) + 1)).sum())
print(total)
"""


@pytest.mark.soak
@compiled
def test_every_instruction_set_gives_the_same_bits():
    sums = {}
    for name in ("plain", "neonbf16", "avx2", "avx512", "avx512bf16"):
        done = subprocess.run(
            [sys.executable, "-c", STORE],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"MEST_FED_KERNELS": name},
        )
        if done.returncode == 0:
            sums[name] = done.stdout
        else:
            assert "is not among the kernels of this machine" in done.stderr
    assert len(set(sums.values())) == 1


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -3e38, 1e-42])
def test_constant_planes_come_back_exactly(value, elements):
    x = torch.full((2, 3, elements), value)
    codes, levels, back = stored(x)
    assert torch.equal(back, x)
    assert not codes.any()
    assert bits([levels])[0].tolist() == [[bits([x + 0.0])[0][0, 0, 0].item(), 0]] * 6


def test_zeros_after_a_relu_come_back_as_zeros():
    x = torch.randn(4, 5, 33, generator=torch.Generator().manual_seed(2)).relu()
    back = stored(x)[2]
    assert torch.equal(back[x == 0], x[x == 0])


@pytest.mark.parametrize("elements", ELEMENTS)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_spreads_over_its_plane_alone(bad, place, elements):
    x = torch.randn(2, 3, elements, generator=torch.Generator().manual_seed(3))
    x[1, 1, place] = bad
    for dtype in (torch.float32, torch.float64):
        _, levels, back = stored(x.to(dtype))
        assert levels.isnan().all(1).tolist() == [False] * 4 + [True, False]
        assert back.isnan().flatten(2).all(2).flatten().tolist() == [False] * 4 + [True, False]
        assert back.isnan().sum() == elements
    assert same_bits(quantise(x), compact_reference.quantise(x))


def test_a_plane_too_wide_for_floats_is_nan():
    x = torch.tensor([[-3e38, 0.0, 3e38], [3.4028234e38, 3.3e38, 3.2e38], [-3.4e38, 0.0, -1.0]])
    codes, levels, back = stored(x)
    assert back.isnan().all(1).tolist() == [True, True, False]
    assert same_bits((codes, levels), compact_reference.quantise(x))


def test_images_come_back_one_by_one():
    x = torch.randn(5, 3, 4, 7, generator=torch.Generator().manual_seed(4))
    codes, levels, back = stored(x)
    for first in range(6):
        for last in range(first, 6):
            some = dequantise(codes[first:last], levels[first * 3 : last * 3])
            assert torch.equal(some, back[first:last])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3, 0), (0, 0), (0, 3, 4, 4), (2, 0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_stored_as_nothing(shape, dtype):
    codes, levels, back = stored(torch.empty(shape, dtype=dtype))
    planes = shape[0] if len(shape) == 2 else shape[0] * shape[1]
    assert (codes.shape, levels.shape, back.shape) == (shape, (planes, 2), shape)
    assert not levels.any()


def test_nothing_is_differentiated():
    x = torch.randn(2, 3, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in stored(x))
