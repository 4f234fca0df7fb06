"""ReLU and 2x2 maximum pooling as one operator, where the compiled kernels are there.

One pass over memory in each direction. A byte an output says where its maximum stood: the backward
pass needs neither input nor output, and the byte is a sixteenth of the input.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mest_fed.kernels import native
from mest_fed.kernels.native import (
    OPERATORS,
    address,
    checked,
    define,
    fake,
    implement,
    same_device,
)

define("relu_pool(Tensor x, bool keep) -> (Tensor, Tensor)")
define("relu_pool_backward(Tensor dz, Tensor where, int[] size) -> Tensor")


def _sizes(size: Sequence[int]) -> tuple[int, int, int]:
    """Return planes, height and width of an input, as the kernels take them."""
    if len(size) != 4 or size[2] < 2 or size[3] < 2:
        raise ValueError(f"x of shape {tuple(size)} has no windows of 2 x 2")
    return size[0] * size[1], size[2], size[3]


def _pooled_size(size: Sequence[int]) -> tuple[int, int, int, int]:
    return size[0], size[1], size[2] // 2, size[3] // 2


def _results(x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    pooled = x.new_empty(_pooled_size(x.shape))
    return pooled, pooled.new_empty(pooled.shape if keep else (0,), dtype=torch.uint8)


@implement("relu_pool")
def _relu_pool(x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    sizes = _sizes(x.shape)
    x = checked(x, "x", tuple(x.shape))
    pooled, where = _results(x, keep)
    codes = address(where if keep else None)
    given = (sizes, address(x), address(pooled), codes)
    native.module().relu_pool_forward(*given, torch.get_num_threads())
    return pooled, where


@implement("relu_pool_backward")
def _relu_pool_backward(dz: Tensor, where: Tensor, size: list[int]) -> Tensor:
    sizes, pooled = _sizes(size), _pooled_size(size)
    dz = checked(dz, "dz", pooled)
    where = checked(where, "where", pooled, torch.uint8)
    dx = dz.new_empty(size)
    given = (sizes, address(dz), address(where), address(dx))
    native.module().relu_pool_backward(*given, torch.get_num_threads())
    return dx


@fake("relu_pool")
def _fake_relu_pool(x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    return _results(x, keep)


@fake("relu_pool_backward")
def _fake_relu_pool_backward(dz: Tensor, where: Tensor, size: list[int]) -> Tensor:
    same_device(dz, where)
    return dz.new_empty(size)


class ReLUPool(torch.autograd.Function):
    """max(0, maximum of each 2x2 window); keeps a byte an output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the maxima of ``x``, (n, channels, h, w) in float32."""
        pooled: Tensor
        pooled, where = OPERATORS.relu_pool(x, True)
        ctx.save_for_backward(where)
        ctx.size = list(x.shape)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> Tensor:
        """Hand each gradient to where its maximum stood, if that was positive."""
        (where,) = ctx.saved_tensors
        dx: Tensor = OPERATORS.relu_pool_backward(dz, where, ctx.size)
        return dx
