"""Calls of the compiled compact storage, behind checks; see native/compact.h."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mest_fed.kernels import native
from mest_fed.kernels.compact_shapes import (
    bytes_of,
    check_quantised,
    check_squeezed,
    image_sizes,
    plane_sizes,
)
from mest_fed.kernels.native import address, checked


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


def squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits (n, bytes), the values (count,) and the starts (n + 1,) of float32 images."""
    sizes = image_sizes(x.shape)
    x = checked(x, "x", tuple(x.shape))
    bits = torch.empty(sizes[0], bytes_of(sizes[1]), dtype=torch.uint8)
    starts = torch.empty(sizes[0] + 1, dtype=torch.int64)
    module, threads = native.module(), torch.get_num_threads()
    module.squeeze_bits(sizes, address(x), address(bits), address(starts), threads)
    values = torch.empty(int(starts[-1]))
    given = (address(x), address(bits), address(starts))
    module.squeeze_values(sizes, given, address(values), threads)
    return bits, values, starts


def expand(
    squeezed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> Tensor:
    """Return the images ``first`` to ``last`` of a squeezed tensor of ``shape``.

    Raises
    ------
    ValueError
        If types, shapes, or bits and starts of these images do not fit each other.
    """
    check_squeezed(squeezed, shape, first, last)
    bits, values, starts = squeezed
    sizes = image_sizes(shape)
    bits = checked(bits, "bits", (sizes[0], bytes_of(sizes[1])), torch.uint8)
    values = checked(values, "values", (values.numel(),))
    starts = checked(starts, "starts", (sizes[0] + 1,), torch.int64)
    x = torch.empty(last - first, *shape[1:])
    given = (address(bits), address(values), address(starts), values.numel())
    native.module().expand(sizes, given, (first, last), address(x), torch.get_num_threads())
    return x
