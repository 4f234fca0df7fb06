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
from torch.nn.grad import conv2d_input, conv2d_weight


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

    def dense(self, values: Tensor) -> Tensor:
        """Build the dense weight."""
        return scatter(values, self.positions(), self.shape)

    def compact(self, gradient: Tensor) -> Tensor:
        """Read the live values' gradient from a dense one."""
        if self.on_dense_gradient is not None:
            self.on_dense_gradient(gradient)
        return gather(gradient, self.positions())


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
        return torch.nn.functional.conv2d(x, weight.dense(values), None, *sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the live values."""
        x, values = ctx.saved_tensors
        weight: SparseWeight = ctx.weight
        geometry: ConvGeometry = ctx.geometry
        sides = (geometry.stride, geometry.padding, geometry.dilation)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(x.shape, weight.dense(values), grad, *sides)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            dense = conv2d_weight(x, weight.shape, grad, *sides)  # type: ignore[no-untyped-call]
            grad_values = weight.compact(dense)
        return grad_x, grad_values, None, None


class SparseLinearFunction(torch.autograd.Function):
    """Linear map with compact weight values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, weight: SparseWeight) -> Tensor:
        """Multiply ``x`` (..., in) with the transpose of a weight of shape (out, in)."""
        ctx.save_for_backward(x, values)
        ctx.weight = weight
        return x @ weight.dense(values).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the live values."""
        x, values = ctx.saved_tensors
        weight: SparseWeight = ctx.weight
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight.dense(values)
        if ctx.needs_input_grad[1]:
            rows, columns = weight.shape
            dense = grad.reshape(-1, rows).t() @ x.reshape(-1, columns)
            grad_values = weight.compact(dense)
        return grad_x, grad_values, None
