"""Reference kernels in torch: right everywhere, fast only where few weights are inactive.

A layer's dense weight exists only while one product is computed: forward builds it and drops it,
backward builds it again. Weights of shape (out, in, kh, kw) convolve (n, in, h, w), weights of
shape (out, in) map (n, in).
"""

import torch
from torch import Tensor

from mest_fed.kernels.weight import ConvGeometry, SparseWeight, scatter


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Multiply ``x`` by the weight."""
    dense = scatter(values, weight.positions(), weight.shape)
    return dense_forward(x, dense, bias, geometry)


def backward_input(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Return the gradient of ``x``, of which only shape and type matter."""
    dense = scatter(values, weight.positions(), weight.shape)
    return dense_backward_input(grad, x, dense, geometry)


def backward_values(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Return the gradient of the active values, by way of the dense weight's."""
    dense = values.new_empty(weight.shape)
    return weight.compact(dense_backward_weight(grad, x, dense, geometry), weight.positions())


def dense_forward(x: Tensor, dense: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Multiply by a dense weight."""
    if dense.dim() == 2:
        return torch.nn.functional.linear(x, dense, bias)
    return torch.nn.functional.conv2d(
        x, dense, bias, geometry.stride, geometry.padding, geometry.dilation
    )


def dense_backward_input(grad: Tensor, x: Tensor, dense: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the gradient of a dense product's input."""
    if dense.dim() == 2:
        return grad @ dense
    return _convolution_backward(grad, x, dense, geometry, 0)


def dense_backward_weight(grad: Tensor, x: Tensor, dense: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the gradient of a dense weight, of which only shape and type matter."""
    if dense.dim() == 2:
        return grad.t() @ x
    return _convolution_backward(grad, x, dense, geometry, 1)


def _convolution_backward(
    grad: Tensor, x: Tensor, dense: Tensor, geometry: ConvGeometry, which: int
) -> Tensor:
    sides = (geometry.stride, geometry.padding, geometry.dilation)
    results = torch.ops.aten.convolution_backward(
        grad, x, dense, None, *sides, False, [0, 0], 1, [which == 0, which == 1, False]
    )
    gradient: Tensor = results[which]
    return gradient
