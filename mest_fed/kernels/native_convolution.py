"""Calls of the compiled convolution, behind checks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mest_fed.kernels import native
from mest_fed.kernels.native import address, checked, written
from mest_fed.kernels.weight import ConvGeometry


class Problem:
    """Sizes of one call, as the compiled kernels take them.

    Parameters
    ----------
    size : sequence of int
        Shape of the input: (n, in, h, w), or (n, in), which is taken as planes of 1x1.
    shape : sequence of int
        Shape of the dense weight, (out, in, kh, kw).
    rows : int
        Rows of a strip; 1 where ``cells`` is given.
    cells : Tensor or None
        int32 (variants, width): the taps that each variant of a kernel keeps.
    geometry : ConvGeometry
        Stride, padding, dilation.

    Raises
    ------
    ValueError
        If the sizes do not fit each other.
    """

    def __init__(
        self,
        size: Sequence[int],
        shape: Sequence[int],
        rows: int,
        cells: Tensor | None,
        geometry: ConvGeometry,
    ) -> None:
        self.dim = len(size)
        self.size = (*size, 1, 1) if self.dim == 2 else tuple(size)
        self.out_channels, in_channels, *kernel = shape
        if len(self.size) != 4 or len(shape) != 4 or self.size[1] != in_channels:
            raise ValueError(f"an input of shape {self.size} does not fit a weight of {shape}")
        if rows < 1:
            raise ValueError(f"rows = {rows}, must be at least 1")
        self.rows = rows
        self.width = rows
        self.cells = cells
        if cells is not None:
            if cells.dim() != 2 or cells.numel() == 0:
                raise ValueError(f"cells of shape {tuple(cells.shape)}, must be (variants, width)")
            self.width = cells.shape[1]
            self.cells = checked(cells, "cells", (len(cells), self.width), torch.int32)
        if min(geometry.stride) < 1 or min(geometry.padding) < 0 or min(geometry.dilation) < 1:
            raise ValueError(f"stride, padding or dilation out of range: {geometry}")
        out = geometry.out_size((self.size[2], self.size[3]), (kernel[0], kernel[1]))
        if min(out) < 1:
            raise ValueError(f"a weight of {shape} is larger than an input of {self.size}")
        if self.dim == 2 and tuple(shape[2:]) != (1, 1):
            raise ValueError(f"features of shape {tuple(size)} do not fit a weight of {shape}")
        self.out_size = (self.size[0], self.out_channels, *out)
        self.numbers = (
            *self.size,
            *self.out_size[1:],
            *kernel,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
        )

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input, as it was given."""
        return self.size[: self.dim]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output, of as many dimensions."""
        return self.out_size[: self.dim]

    @property
    def empty(self) -> bool:
        """Whether there is no image."""
        return self.size[0] == 0

    def weight(self, slots: Tensor) -> tuple[int, int, int, int, int, int]:
        """Return the compiled kernels' view of the active granules; keep ``slots`` alive."""
        variants = 1 if self.cells is None else len(self.cells)
        return (address(slots), len(slots), self.rows, address(self.cells), variants, self.width)


def forward(
    x: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    problem: Problem,
    *,
    plane: int,
    y: Tensor | None = None,
) -> Tensor:
    """Multiply ``x`` (n, in, h, w) or (n, in), into ``y`` if that is given."""
    slots = checked(slots, "slots", (slots.numel(),), torch.int32)
    x = checked(x, "x", problem.in_shape)
    values = checked(values, "values", (len(slots), problem.width))
    if bias is not None:
        bias = checked(bias, "bias", (problem.out_channels,))
    y = x.new_empty(problem.out_shape) if y is None else written(y, "y", problem.out_shape)
    if not problem.empty:
        native.module().forward(
            problem.numbers,
            problem.weight(slots),
            address(values),
            address(x),
            address(bias),
            address(y),
            plane,
            torch.get_num_threads(),
        )
    return y


def backward_input(
    grad: Tensor, values: Tensor, slots: Tensor, problem: Problem, plane: int
) -> Tensor:
    """Return the gradient of the input."""
    slots = checked(slots, "slots", (slots.numel(),), torch.int32)
    grad = checked(grad, "grad", problem.out_shape)
    values = checked(values, "values", (len(slots), problem.width))
    dx = grad.new_empty(problem.in_shape)
    if not problem.empty:
        native.module().backward_input(
            problem.numbers,
            problem.weight(slots),
            address(values),
            address(grad),
            address(dx),
            plane,
            torch.get_num_threads(),
        )
    return dx


def backward_values(grad: Tensor, x: Tensor, slots: Tensor, problem: Problem, plane: int) -> Tensor:
    """Return the gradient of the active values, (active, width)."""
    slots = checked(slots, "slots", (slots.numel(),), torch.int32)
    grad = checked(grad, "grad", problem.out_shape)
    x = checked(x, "x", problem.in_shape)
    gradient = grad.new_zeros(len(slots), problem.width)
    if not problem.empty:
        native.module().backward_values(
            problem.numbers,
            problem.weight(slots),
            address(x),
            address(grad),
            address(gradient),
            plane,
            torch.get_num_threads(),
        )
    return gradient


def backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    slots: Tensor,
    problem: Problem,
    *,
    plane: int,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return both gradients, of the input and of the active values, reading ``grad`` once.

    That of the input goes into ``dx`` if that is given.
    """
    slots = checked(slots, "slots", (slots.numel(),), torch.int32)
    grad = checked(grad, "grad", problem.out_shape)
    x = checked(x, "x", problem.in_shape)
    values = checked(values, "values", (len(slots), problem.width))
    dx = grad.new_empty(problem.in_shape) if dx is None else written(dx, "dx", problem.in_shape)
    gradient = grad.new_zeros(len(slots), problem.width)
    if not problem.empty:
        native.module().backward(
            problem.numbers,
            problem.weight(slots),
            (address(values), address(x), address(grad)),
            (address(dx), address(gradient)),
            plane,
            torch.get_num_threads(),
        )
    return dx, gradient
