"""Compact storage as torch operators: ``torch.ops.mest_fed.quantise`` and the like.

One implementation for all devices: the compiled kernels where they compute with such numbers.
"""

from typing import Any

import torch
from torch import Tensor

from mest_fed.kernels import compact_reference, native_compact
from mest_fed.kernels.compact_shapes import QUANTISED, bytes_of, image_sizes, plane_sizes
from mest_fed.kernels.library import define, fake, implement, same_device

define("quantise(Tensor x) -> (Tensor, Tensor)")
define("dequantise(Tensor codes, Tensor levels) -> Tensor")
define("squeeze(Tensor x) -> (Tensor, Tensor, Tensor)")
define(
    "expand(Tensor bits, Tensor values, Tensor starts, SymInt[] shape, SymInt first, SymInt last) "
    "-> Tensor"
)

_ANYWHERE = "CompositeExplicitAutograd"  # torch's dispatch key for that


@implement("quantise", _ANYWHERE)
def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype not in QUANTISED:
        raise ValueError(f"x is {x.dtype}, must be float32 or float64")
    if native_compact.takes(x):
        return native_compact.quantise(x)
    return compact_reference.quantise(x)


@implement("dequantise", _ANYWHERE)
def _dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    same_device(codes, levels)
    if native_compact.takes(levels):
        return native_compact.dequantise(codes, levels)
    return compact_reference.dequantise(codes, levels)


@implement("squeeze", _ANYWHERE)
def _squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not x.dtype.is_floating_point:
        raise ValueError(f"x is {x.dtype}, must be of floats")
    if native_compact.takes(x):
        return native_compact.squeeze(x)
    return compact_reference.squeeze(x)


@implement("expand", _ANYWHERE)
def _expand(bits: Tensor, values: Tensor, starts: Tensor, *rest: Any) -> Tensor:
    same_device(bits, values, starts)
    if native_compact.takes(values):
        return native_compact.expand((bits, values, starts), *rest)
    return compact_reference.expand((bits, values, starts), *rest)


@fake("quantise")
def _fake_quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    planes, _ = plane_sizes(x.shape)
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(planes, 2)


@fake("dequantise")
def _fake_dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    same_device(codes, levels)
    return levels.new_empty(codes.shape)


@fake("squeeze")
def _fake_squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # How many values there are is known by their numbers alone: at most all.
    images, elements = image_sizes(x.shape)
    bits = x.new_empty(images, bytes_of(elements), dtype=torch.uint8)
    return bits, x.new_empty(x.numel()), x.new_empty(images + 1, dtype=torch.int64)


@fake("expand")
def _fake_expand(bits: Tensor, values: Tensor, starts: Tensor, *rest: Any) -> Tensor:
    same_device(bits, values, starts)
    shape, first, last = rest
    return values.new_empty(last - first, *shape[1:])
