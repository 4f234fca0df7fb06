"""The compiled convolution as torch operators, for compilers, fake tensors and FLOP counters.

``torch.ops.mest_fed.conv2d``, ``conv2d_input``, ``conv2d_values`` and ``conv2d_backward``, which
is the two before in one; `geometry` is stride,
padding and dilation, two numbers each. A linear layer takes (n, in) and is a
convolution of 1x1 planes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mest_fed.kernels import native_convolution as native
from mest_fed.kernels.native import OPERATORS, define, fake, implement, same_device
from mest_fed.kernels.native_convolution import Problem
from mest_fed.kernels.weight import ConvGeometry

_WEIGHT = "Tensor slots, Tensor? cells, int rows, int[] shape, int[] geometry"
define(f"conv2d(Tensor x, Tensor values, Tensor? bias, {_WEIGHT}, int plane) -> Tensor")
define(f"conv2d_input(Tensor grad, Tensor values, {_WEIGHT}, int[] size, int plane) -> Tensor")
define(f"conv2d_values(Tensor grad, Tensor x, {_WEIGHT}, int plane) -> Tensor")

define(
    f"conv2d_backward(Tensor grad, Tensor x, Tensor values, {_WEIGHT}, int plane) "
    "-> (Tensor, Tensor)"
)
define(
    f"conv2d_into(Tensor(a!) y, Tensor x, Tensor values, Tensor? bias, {_WEIGHT}, int plane) -> ()"
)
define(
    f"conv2d_backward_into(Tensor(a!) dx, Tensor grad, Tensor x, Tensor values, {_WEIGHT}, "
    "int plane) -> Tensor"
)


def _geometry(numbers: list[int]) -> ConvGeometry:
    if len(numbers) != 6:
        raise ValueError(f"geometry = {numbers}, must be 6 numbers")
    a, b, c, d, e, f = numbers
    return ConvGeometry((a, b), (c, d), (e, f))


@implement("conv2d")
def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, slots: Tensor, cells: Tensor | None, *rest: Any
) -> Tensor:
    rows, shape, geometry, plane = rest
    problem = Problem(x.shape, shape, rows, cells, _geometry(geometry))
    return native.forward(x, values, slots, bias, problem, plane=plane)


@implement("conv2d_input")
def _conv2d_input(
    grad: Tensor, values: Tensor, slots: Tensor, cells: Tensor | None, rows: int, *rest: Any
) -> Tensor:
    shape, geometry, size, plane = rest
    problem = Problem(size, shape, rows, cells, _geometry(geometry))
    return native.backward_input(grad, values, slots, problem, plane)


@implement("conv2d_values")
def _conv2d_values(
    grad: Tensor, x: Tensor, slots: Tensor, cells: Tensor | None, rows: int, *rest: Any
) -> Tensor:
    shape, geometry, plane = rest
    problem = Problem(x.shape, shape, rows, cells, _geometry(geometry))
    return native.backward_values(grad, x, slots, problem, plane)


@implement("conv2d_backward")
def _conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, slots: Tensor, cells: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    rows, shape, geometry, plane = rest
    problem = Problem(x.shape, shape, rows, cells, _geometry(geometry))
    return native.backward(grad, x, values, slots, problem, plane=plane)


@implement("conv2d_into")
def _conv2d_into(
    y: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, slots: Tensor, *rest: Any
) -> None:
    cells, rows, shape, geometry, plane = rest
    problem = Problem(x.shape, shape, rows, cells, _geometry(geometry))
    native.forward(x, values, slots, bias, problem, plane=plane, y=y)


@implement("conv2d_backward_into")
def _conv2d_backward_into(
    dx: Tensor, grad: Tensor, x: Tensor, values: Tensor, slots: Tensor, *rest: Any
) -> Tensor:
    cells, rows, shape, geometry, plane = rest
    problem = Problem(x.shape, shape, rows, cells, _geometry(geometry))
    return native.backward(grad, x, values, slots, problem, plane=plane, dx=dx)[1]


@fake("conv2d_into")
def _fake_conv2d_into(y: Tensor, *rest: Any) -> None:
    same_device(y, *rest)


@fake("conv2d_backward_into")
def _fake_conv2d_backward_into(
    dx: Tensor, grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> Tensor:
    same_device(dx, grad, x, values, *rest)
    return values.new_empty(values.shape)


@fake("conv2d")
def _fake_conv2d(x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    same_device(x, values, bias, *rest)
    shape, geometry = rest[3], rest[4]
    if x.dim() == 2:
        return x.new_empty(x.shape[0], shape[0])
    size = _geometry(geometry).out_size((x.shape[2], x.shape[3]), (shape[2], shape[3]))
    return x.new_empty(x.shape[0], shape[0], *size)


@fake("conv2d_input")
def _fake_conv2d_input(grad: Tensor, values: Tensor, *rest: Any) -> Tensor:
    same_device(grad, values, *rest)
    return grad.new_empty(rest[5])


@fake("conv2d_values")
def _fake_conv2d_values(
    grad: Tensor, x: Tensor, slots: Tensor, cells: Tensor | None, rows: int, *rest: Any
) -> Tensor:
    same_device(grad, x, slots, cells)
    return grad.new_empty(slots.shape[0], rows if cells is None else cells.shape[1])


@fake("conv2d_backward")
def _fake_conv2d_backward(
    grad: Tensor, x: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    same_device(grad, x, values, *rest)
    return torch.empty_like(x, memory_format=torch.contiguous_format), values.new_empty(
        values.shape
    )


def _flops(values: tuple[int, ...], images_and_plane: tuple[int, ...]) -> int:
    """Multiply and add once for each active value, image and output position."""
    n, _, *plane = images_and_plane
    return 2 * math.prod(values) * n * math.prod(plane)


# Shapes arrive in place of tensors.
@register_flop_formula(OPERATORS.conv2d)
def _conv2d_flops(x: Any, values: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return _flops(values, out_shape)


@register_flop_formula(OPERATORS.conv2d_input)
def _conv2d_input_flops(grad: Any, values: Any, *args: Any, **kwargs: Any) -> int:
    return _flops(values, grad)


@register_flop_formula(OPERATORS.conv2d_values)
def _conv2d_values_flops(grad: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return _flops(out_shape, grad)


@register_flop_formula(OPERATORS.conv2d_backward)
def _conv2d_backward_flops(grad: Any, x: Any, values: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _flops(values, grad)
