"""Calls of the compiled compact storage, behind checks; see native/compact.h."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mest_fed.kernels import compact_reference, native
from mest_fed.kernels.compact_reference import (
    QUANTISED,
    bytes_of,
    check_packed,
    check_quantised,
    image_sizes,
    plane_sizes,
)
from mest_fed.kernels.native import address, checked, define, fake, implement, same_device


def takes(tensor: Tensor) -> bool:
    """Say whether the compiled kernels are there and compute with such numbers."""
    # No warning where they are absent: the sparse layers give one.
    here = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return here and native.variant() is not None


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes, of x's shape, and the levels (planes, 2) of a float32 tensor."""
    sizes = plane_sizes(x.shape)
    x = checked(x, "x", tuple(x.shape))
    codes = torch.empty(x.shape, dtype=torch.uint8)
    levels = torch.empty(sizes[0], 2)
    native.module().quantise(
        sizes, address(x), address(codes), address(levels), torch.get_num_threads()
    )
    return codes, levels


def dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    """Return the float32 tensor that codes and levels stand for."""
    check_quantised(codes, levels)
    sizes = plane_sizes(codes.shape)
    codes = checked(codes, "codes", tuple(codes.shape), torch.uint8)
    levels = checked(levels, "levels", (sizes[0], 2))
    x = torch.empty(codes.shape)
    native.module().dequantise(
        sizes, address(codes), address(levels), address(x), torch.get_num_threads()
    )
    return x


def pack_nonzeros(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits (n, bytes), the values (count,) and the starts (n + 1,) of float32 images."""
    sizes = image_sizes(x.shape)
    x = checked(x, "x", tuple(x.shape))
    bits = torch.empty(sizes[0], bytes_of(sizes[1]), dtype=torch.uint8)
    starts = torch.empty(sizes[0] + 1, dtype=torch.int64)
    module, threads = native.module(), torch.get_num_threads()
    module.pack_bits(sizes, address(x), address(bits), address(starts), threads)
    values = torch.empty(int(starts[-1]))
    given = (address(x), address(bits), address(starts))
    module.pack_values(sizes, given, address(values), threads)
    return bits, values, starts


def unpack_nonzeros(
    packed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> Tensor:
    """Return the images ``first`` to ``last`` of a packed tensor of ``shape``.

    Raises
    ------
    ValueError
        If types, shapes, or bits and starts of these images do not fit each other.
    """
    check_packed(packed, shape, first, last)
    bits, values, starts = packed
    sizes = image_sizes(shape)
    bits = checked(bits, "bits", (sizes[0], bytes_of(sizes[1])), torch.uint8)
    values = checked(values, "values", (values.numel(),))
    starts = checked(starts, "starts", (sizes[0] + 1,), torch.int64)
    x = torch.empty(last - first, *shape[1:])
    given = (address(bits), address(values), address(starts), values.numel())
    native.module().unpack_nonzeros(
        sizes, given, (first, last), address(x), torch.get_num_threads()
    )
    return x


define("quantise(Tensor x) -> (Tensor, Tensor)")
define("dequantise(Tensor codes, Tensor levels) -> Tensor")
define("pack_nonzeros(Tensor x) -> (Tensor, Tensor, Tensor)")
define(
    "unpack_nonzeros(Tensor bits, Tensor values, Tensor starts, SymInt[] shape, SymInt first, "
    "SymInt last) -> Tensor"
)

_ANYWHERE = "CompositeExplicitAutograd"  # torch's dispatch key for that


@implement("quantise", _ANYWHERE)
def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype not in QUANTISED:
        raise ValueError(f"x is {x.dtype}, must be float32 or float64")
    if takes(x):
        return quantise(x)
    return compact_reference.quantise(x)


@implement("dequantise", _ANYWHERE)
def _dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    same_device(codes, levels)
    if takes(levels):
        return dequantise(codes, levels)
    return compact_reference.dequantise(codes, levels)


@implement("pack_nonzeros", _ANYWHERE)
def _pack_nonzeros(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not x.dtype.is_floating_point:
        raise ValueError(f"x is {x.dtype}, must be of floats")
    if takes(x):
        return pack_nonzeros(x)
    return compact_reference.pack_nonzeros(x)


@implement("unpack_nonzeros", _ANYWHERE)
def _unpack_nonzeros(bits: Tensor, values: Tensor, starts: Tensor, *rest: Any) -> Tensor:
    same_device(bits, values, starts)
    if takes(values):
        return unpack_nonzeros((bits, values, starts), *rest)
    return compact_reference.unpack_nonzeros((bits, values, starts), *rest)


@fake("quantise")
def _fake_quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    planes, _ = plane_sizes(x.shape)
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(planes, 2)


@fake("dequantise")
def _fake_dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    same_device(codes, levels)
    return levels.new_empty(codes.shape)


@fake("pack_nonzeros")
def _fake_pack_nonzeros(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The number of values depends on the data; at most all.
    images, elements = image_sizes(x.shape)
    bits = x.new_empty(images, bytes_of(elements), dtype=torch.uint8)
    return bits, x.new_empty(x.numel()), x.new_empty(images + 1, dtype=torch.int64)


@fake("unpack_nonzeros")
def _fake_unpack_nonzeros(bits: Tensor, values: Tensor, starts: Tensor, *rest: Any) -> Tensor:
    same_device(bits, values, starts)
    shape, first, last = rest
    return values.new_empty(last - first, *shape[1:])
