"""Batch normalisation in backward, a chunk of the batch at a time."""

import torch
from torch import Tensor, nn

from mest_fed.nn import SparseConv2d
from mest_fed.nn.dense import Conv2d, dense_gradients
from mest_fed.nn.norms import BatchNorm2d, Statistics

#: Of parameters, summed over micro_chunks.
Gradients = dict[Tensor, Tensor]


class NormBackward:
    """Gathers the two sums a channel that tie a batch together, then gives the input's gradient.

    Ioffe & Szegedy 2015, section 3: with xhat = (x - mean) / deviation and n values a channel,

        dx = gamma / deviation * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n).

    Parameters
    ----------
    norm : BatchNorm2d
        The layer.
    statistics : Statistics
        Those of its forward pass.
    gradients : dict
        Where those of gamma and beta go.
    """

    def __init__(self, norm: BatchNorm2d, statistics: Statistics, gradients: Gradients) -> None:
        gamma, beta = norm.weight.detach(), norm.bias.detach()
        self._norm, self._gradients = norm, gradients
        self._scale = statistics.scale
        self._mean = _by_channel(statistics.mean)
        self._factor = _by_channel(gamma * statistics.scale)
        self._constant = _by_channel(beta) - self._mean * self._factor
        self._sum = torch.zeros_like(gamma, dtype=torch.float64)
        self._along = torch.zeros_like(self._sum)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the normalised x into y, as the forward pass did; return y."""
        return torch.addcmul(self._constant, x, self._factor, out=y)

    def add(self, grad: Tensor, x: Tensor, buffer: Tensor) -> None:
        """Add a chunk to the sums: the output's gradient, and the input."""
        self._sum += grad.sum((0, 2, 3))
        self._along += torch.sub(x, self._mean, out=buffer).mul_(grad).sum((0, 2, 3))

    def close(self, count: int) -> None:
        """End the sums over ``count`` values a channel, and note the parameters' gradients."""
        dtype = self._scale.dtype
        total, along = self._sum.to(dtype), self._along.to(dtype) * self._scale
        self._gradients[self._norm.weight] = along
        self._gradients[self._norm.bias] = total
        self._level = _by_channel(total / count)
        self._slope = _by_channel(along * self._scale / count)

    def input_gradient(self, grad: Tensor, x: Tensor, dx: Tensor) -> Tensor:
        """Write the gradient of x for a chunk of the output's into dx; return dx.

        ``dx`` may be ``x``, and must not be ``grad``.
        """
        torch.sub(x, self._mean, out=dx).mul_(self._slope).add_(self._level)
        return torch.sub(grad, dx, out=dx).mul_(self._factor)


def _by_channel(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def convolves_by_hand(layer: nn.Module) -> bool:
    """Whether the gradients of a layer are known here: plain convolutions without a bias."""
    if isinstance(layer, SparseConv2d):
        return type(layer) is SparseConv2d and layer.bias is None
    return (
        isinstance(layer, nn.Conv2d)
        and type(layer) in (nn.Conv2d, Conv2d)
        and layer.bias is None
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def convolve(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Convolve ``x`` into ``y``."""
    if isinstance(layer, SparseConv2d | Conv2d):
        return layer.into(x, y)
    return y.copy_(layer(x))


def convolve_back(
    layer: nn.Module, x: Tensor, grad: Tensor, into: Tensor | None, gradients: Gradients
) -> None:
    """Add a weight's gradient to ``gradients``; write that of ``x`` unless ``into`` is None."""
    if isinstance(layer, SparseConv2d | Conv2d):
        parameter, gradient = layer.gradients(x, grad, into)
    else:
        assert isinstance(layer, nn.Conv2d)
        parameter, gradient = dense_gradients(layer, x, grad, into)
    if gradient is not None:
        total = gradients.get(parameter)
        gradients[parameter] = gradient if total is None else total.add_(gradient)
