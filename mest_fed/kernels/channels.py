"""Channel sparsity: a smaller dense product over the active channels alone."""

import torch
from torch import Tensor

from mest_fed.kernels.reference import (
    dense_backward_input,
    dense_backward_weight,
    dense_forward,
)
from mest_fed.kernels.storage import Channels
from mest_fed.kernels.weight import ConvGeometry, SparseWeight


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Multiply ``x`` by the weight; inactive output channels are zero, or their bias."""
    if len(weight.slots) == 0:  # torch convolves with no empty weight
        y = x.new_zeros(_out_shape(x, weight, geometry))
    else:
        slots, active_weight = weight.slots.long(), _active_weight(values, weight)
        if _axis(weight) == "in":
            return dense_forward(x[:, slots], active_weight, bias, geometry)
        active = dense_forward(x, active_weight, None, geometry)
        y = active.new_zeros(active.shape[0], weight.shape[0], *active.shape[2:])
        y.index_copy_(1, slots, active)
    return y if bias is None else y.add_(bias.view(-1, *[1] * (y.dim() - 2)))


def backward_input(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Return the gradient of ``x``."""
    if len(weight.slots) == 0:
        return torch.zeros_like(x)
    slots, active_weight = weight.slots.long(), _active_weight(values, weight)
    if _axis(weight) == "out":
        return dense_backward_input(grad[:, slots], x, active_weight, geometry)
    active = dense_backward_input(grad, x[:, slots], active_weight, geometry)
    return torch.zeros_like(x).index_copy_(1, slots, active)


def backward_values(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, geometry: ConvGeometry
) -> Tensor:
    """Return the gradient of the active values."""
    if len(weight.slots) == 0:
        return torch.zeros_like(values)
    slots, active_weight = weight.slots.long(), _active_weight(values, weight)
    if _axis(weight) == "out":
        gradient = dense_backward_weight(grad[:, slots], x, active_weight, geometry)
    else:
        gradient = dense_backward_weight(grad, x[:, slots], active_weight, geometry).transpose(0, 1)
    return gradient.reshape(values.shape)


def _axis(weight: SparseWeight) -> str:
    if not isinstance(weight.storage, Channels):
        raise TypeError(f"{weight.storage} does not store channels")
    return weight.storage.axis


def _active_weight(values: Tensor, weight: SparseWeight) -> Tensor:
    """View the values as the dense weight of the active channels."""
    out_channels, in_channels, *kernel = weight.shape
    if _axis(weight) == "out":
        return values.view(len(values), in_channels, *kernel)
    return values.view(len(values), out_channels, *kernel).transpose(0, 1)


def _out_shape(x: Tensor, weight: SparseWeight, geometry: ConvGeometry) -> tuple[int, ...]:
    if x.dim() == 2:
        return (x.shape[0], weight.shape[0])
    kernel = (weight.shape[2], weight.shape[3])
    size = geometry.out_size((x.shape[2], x.shape[3]), kernel)
    return (x.shape[0], weight.shape[0], *size)
