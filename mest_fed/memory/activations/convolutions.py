"""Convolutions of a backward pass that is ordered by hand: into given buffers, without autograd."""

from torch import Tensor, nn

from mest_fed.memory.activations.norm_backward import Gradients
from mest_fed.nn import SparseConv2d
from mest_fed.nn.convolution import Conv2d, dense_gradients


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
