"""Reference kernels in torch: right everywhere, fast nowhere.

A layer's dense weight exists only while one product is computed: forward builds it and drops it,
backward builds it again. What autograd saves is the input and the values, never a dense weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, padding and dilation of a 2-D convolution (groups = 1)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class SparseWeight:
    """What a kernel needs to know of a compact weight beside its values.

    Parameters
    ----------
    shape : tuple of int
        Shape of the dense weight.
    positions : callable
        Computes where the values stand in the flattened dense weight, int64 of the values' shape.
    on_dense_gradient : callable or None
        Receives the dense weight gradient for the moment that it exists.
    """

    shape: tuple[int, ...]
    positions: Callable[[], Tensor]
    on_dense_gradient: Callable[[Tensor], None] | None = None

    def compact(self, gradient: Tensor, at: Tensor) -> Tensor:
        """Read the live values' gradient at positions of a dense one."""
        if self.on_dense_gradient is not None:
            self.on_dense_gradient(gradient)
        return gather(gradient, at)


def scatter(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Build the dense weight of ``shape`` with ``values`` at flat ``positions``.

    A position one past the end is padding and is left out.
    """
    flat = values.new_zeros(math.prod(shape) + 1)
    flat[positions] = values
    return flat[:-1].view(shape)


def gather(dense: Tensor, positions: Tensor) -> Tensor:
    """Read a dense tensor at flat ``positions``; padding reads zero."""
    flat = dense.reshape(-1)
    return torch.cat([flat, flat.new_zeros(1)])[positions]


class SparseConv2dFunction(torch.autograd.Function):
    """2-D convolution with compact weight values."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        weight: SparseWeight,
        geometry: ConvGeometry,
    ) -> Tensor:
        """Convolve ``x`` (n, in, h, w) with a weight of shape (out, in, kh, kw)."""
        ctx.save_for_backward(x, values)
        ctx.weight, ctx.geometry = weight, geometry
        sides = (geometry.stride, geometry.padding, geometry.dilation)
        dense = scatter(values, weight.positions(), weight.shape)
        return torch.nn.functional.conv2d(x, dense, None, *sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the live values."""
        x, values = ctx.saved_tensors
        weight: SparseWeight = ctx.weight
        geometry: ConvGeometry = ctx.geometry
        sides = (geometry.stride, geometry.padding, geometry.dilation)
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        at = weight.positions()
        dense = scatter(values, at, weight.shape)
        grad_x, grad_dense, _ = torch.ops.aten.convolution_backward(
            grad, x, dense, None, *sides, False, [0, 0], 1, wanted
        )
        return grad_x, weight.compact(grad_dense, at) if wanted[1] else None, None, None


class SparseLinearFunction(torch.autograd.Function):
    """Linear map with compact weight values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, weight: SparseWeight) -> Tensor:
        """Multiply ``x`` (..., in) with the transpose of a weight of shape (out, in)."""
        ctx.save_for_backward(x, values)
        ctx.weight = weight
        return x @ scatter(values, weight.positions(), weight.shape).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the live values."""
        x, values = ctx.saved_tensors
        weight: SparseWeight = ctx.weight
        at = weight.positions()
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ scatter(values, at, weight.shape)
        if ctx.needs_input_grad[1]:
            rows, columns = weight.shape
            dense = grad.reshape(-1, rows).t() @ x.reshape(-1, columns)
            grad_values = weight.compact(dense, at)
        return grad_x, grad_values, None
