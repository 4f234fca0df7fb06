"""Compact storage as torch operators: torch's checks, fake tensors, and what is refused."""

import pytest
import torch
from compact_cases import same_bits
from torch._subclasses.fake_tensor import FakeTensorMode

from mest_fed.kernels import compact, native
from mest_fed.kernels.compact import dequantise, pack_nonzeros, quantise, unpack_nonzeros
from mest_fed.kernels.native import OPERATORS

FULL = torch.rand(4, 3, 5, 7, generator=torch.Generator().manual_seed(1)) + 0.5
HALF = (FULL - 1).relu()
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def arguments(x):
    """Return good arguments of each operator."""
    return {
        "quantise": (x,),
        "dequantise": quantise(x),
        "pack_nonzeros": (x,),
        "unpack_nonzeros": (*pack_nonzeros(x), list(x.shape), 1, 3),
    }


def outputs(name, given):
    """Return what an operator gives as a tuple, of one or more."""
    result = getattr(OPERATORS, name)(*given)
    return result if isinstance(result, tuple) else (result,)


@DTYPES
@pytest.mark.parametrize("name", arguments(FULL))
def test_torch_accepts_the_operators(name, dtype):
    # Without a zero: of a packed tensor that has some, no shape can be told beforehand.
    torch.library.opcheck(getattr(OPERATORS, name).default, arguments(FULL.to(dtype))[name])


@DTYPES
@pytest.mark.parametrize("name", arguments(FULL))
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(name, dtype):
    x = FULL.to(dtype).contiguous(memory_format=torch.channels_last)
    given = arguments(x)[name]
    real = outputs(name, given)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in given]
        fake = outputs(name, fakes)
    meta = outputs(name, [a.to("meta") if isinstance(a, torch.Tensor) else a for a in given])
    for a, b, c in zip(real, fake, meta, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert (a.shape, a.stride(), a.dtype) == (c.shape, c.stride(), c.dtype)


def test_a_meta_tensor_keeps_all_its_values():
    assert pack_nonzeros(HALF.to("meta"))[1].shape == (HALF.numel(),)


def test_torch_stands_in_for_compiled_kernels(monkeypatch):
    before = (*quantise(HALF), *pack_nonzeros(HALF))
    monkeypatch.setattr(native, "variant", lambda: None)
    after = (*quantise(HALF), *pack_nonzeros(HALF))
    assert same_bits(before, after)
    assert torch.equal(unpack_nonzeros(*after[2:], HALF.shape, first=1), HALF[1:])


BITS, VALUES, STARTS = pack_nonzeros(HALF)
CODES, LEVELS = quantise(HALF)


def changed(tensor, at, number):
    """Return a copy with another number at a flat position."""
    copy = tensor.clone()
    copy.view(-1)[at] = number
    return copy


WRONG_TYPES = {
    "x of one dimension": lambda: quantise(torch.ones(3)),
    "x without any": lambda: pack_nonzeros(torch.ones(())),
    "x of halves": lambda: quantise(HALF.half()),
    "x of integers": lambda: quantise(CODES),
    "x of integers to pack_nonzeros": lambda: pack_nonzeros(CODES),
    "codes of floats": lambda: dequantise(HALF, LEVELS),
    "codes of one dimension": lambda: dequantise(CODES.flatten(), LEVELS),
    "levels of halves": lambda: dequantise(CODES, LEVELS.half()),
    "levels of other planes": lambda: dequantise(CODES, LEVELS[1:]),
    "levels in a row": lambda: dequantise(CODES, LEVELS.flatten()),
    "levels on another device": lambda: dequantise(CODES, LEVELS.to("meta")),
    "values on another device": lambda: unpack_nonzeros(
        BITS, VALUES.to("meta"), STARTS, HALF.shape
    ),
}


@pytest.mark.parametrize("what", WRONG_TYPES)
def test_wrong_types_and_shapes_are_refused(what):
    with pytest.raises(ValueError, match=r"\b(x|shape|codes|levels|devices)\b"):
        WRONG_TYPES[what]()


HOSTILE = {
    "bits of fewer images": {"bits": BITS[1:]},
    "bits of fewer bytes": {"bits": BITS[:, 1:]},
    "bits in a row": {"bits": BITS.flatten()},
    "bits of integers": {"bits": BITS.int()},
    "a bit more": {"bits": changed(BITS, 0, 255)},
    "a bit less": {"bits": changed(BITS, BITS.shape[1], 0)},
    "spare bits": {"bits": changed(BITS, -1, int(BITS.view(-1)[-1]) | 128)},
    "a value too few": {"values": VALUES[1:]},
    "a value too many": {"values": torch.cat([VALUES, VALUES[:1]])},
    "no values": {"values": VALUES[:0]},
    "values of two dimensions": {"values": VALUES.view(-1, 1)},
    "values of integers": {"values": VALUES.int()},
    "starts of fewer images": {"starts": STARTS[1:]},
    "starts of 32 bits": {"starts": STARTS.int()},
    "starts from 1": {"starts": changed(STARTS, 0, 1)},
    "starts below zero": {"starts": changed(STARTS, 2, -1)},
    "starts far below zero": {"starts": changed(STARTS, 2, -(2**63))},
    "starts out of range": {"starts": changed(STARTS, 2, 2**63 - 1)},
    "starts that end early": {"starts": changed(STARTS, -1, 0)},
    "starts that end out of range": {"starts": changed(STARTS, -1, 2**62)},
    "starts that fall": {"starts": STARTS[[0, 2, 1, 3, 4]]},
    "starts moved by one": {"starts": changed(STARTS, 2, int(STARTS[2]) + 1)},
    "another shape": {"shape": (4, 3, 5, 8)},
    "no shape": {"shape": ()},
    "a shape below zero": {"shape": (4, -3, -5, 7)},
    "first below zero": {"first": -1},
    "last out of range": {"last": 5},
    "last before first": {"first": 3, "last": 2},
}


@DTYPES
@pytest.mark.parametrize("what", HOSTILE)
def test_parts_that_do_not_fit_are_refused(what, dtype):
    good = {"bits": BITS, "values": VALUES, "starts": STARTS, "shape": HALF.shape}
    parts = {**good, **HOSTILE[what]}
    if parts["values"].dtype == torch.float32:
        parts["values"] = parts["values"].to(dtype)
    with pytest.raises(ValueError, match=r"\b(bits|values|starts|shape|first)\b"):
        compact.unpack_nonzeros(**parts)


def test_images_that_fit_come_back_beside_one_that_does_not():
    spoiled = changed(BITS, 0, 255)
    assert torch.equal(unpack_nonzeros(spoiled, VALUES, STARTS, HALF.shape, first=1), HALF[1:])
