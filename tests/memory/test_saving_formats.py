"""The formats, each by itself: how near, which images, and the ends of a range."""

import pytest
import torch
from saving_cases import LOSSLESS, generator

from mest_fed.errors import MestFedError
from mest_fed.memory import FORMATS
from mest_fed.memory.activations.saved_tensors import packable

SHAPES = [(5, 3, 4, 4), (1, 2, 7, 3), (4, 9), (3, 2, 5)]
#: Largest error, as a share of a channel's range: half a step of rounding.
STEPS = {"fp16": 2**-11, "bf16": 2**-8, "int8": 0.51 / 255}


def draw(shape, dtype):
    return torch.randn(shape, generator=generator(), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_packed_comes_back(name, shape, dtype):
    x = draw(shape, dtype)
    packed = FORMATS[name](x.clone().requires_grad_())
    whole = packed.whole()
    assert packed.shape == whole.shape == x.shape
    assert whole.dtype == dtype
    assert not whole.requires_grad
    if name in LOSSLESS:
        assert torch.equal(whole, x)
    else:
        reach = x.amax() - x.amin() if name == "int8" else x.abs().amax()
        assert 0 < (whole - x).abs().amax() <= STEPS[name] * reach
    for first, last in [(0, 1), (0, len(x)), (len(x) // 2, len(x)), (len(x) - 1, len(x))]:
        assert torch.equal(packed.images(first, last), whole[first:last])


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_signs_stay(name):
    """So a ReLU's gradient, which reads signs alone, is the same behind any format."""
    x = draw((4, 3, 8, 8), torch.float32).relu_()
    whole = FORMATS[name](x).whole()
    assert not whole[x == 0].any()
    assert (whole >= 0).all()


def test_what_float16_cannot_hold_is_held_to_its_ends():
    x = torch.tensor([[1e6, -1e6, 65504.0, float("inf"), 1.0]])
    assert FORMATS["fp16"](x).whole().tolist() == [[65504.0, -65504.0, 65504.0, 65504.0, 1.0]]
    assert torch.equal(
        FORMATS["bf16"](torch.tensor([[2.0**100]])).whole(), torch.tensor([[2.0**100]])
    )
    assert FORMATS["fp16"](torch.tensor([[float("nan")]])).whole().isnan().all()


def test_what_is_kept_as_it_is_must_stay_so():
    x = draw((4, 3), torch.float32)
    packed = FORMATS["fp32"](x)
    assert packed.whole().data_ptr() == x.data_ptr()
    x[0] += 1
    with pytest.raises(MestFedError, match=r"shape \(4, 3\) was changed in place"):
        packed.images(1, 2)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fp32"])
def test_what_is_packed_may_be_changed(name):
    x = draw((4, 3), torch.float32)
    packed = FORMATS[name](x)
    before = packed.whole()
    x.zero_()
    assert torch.equal(packed.whole(), before)
    assert before.any()


def test_what_formats_take():
    assert packable(torch.zeros(1))
    assert packable(torch.zeros(1, dtype=torch.float64))
    for dtype in (torch.int64, torch.bool, torch.bfloat16, torch.complex64):
        assert not packable(torch.zeros(1, dtype=dtype))
