"""How models' weights are drawn at the start.

A model whose class has an attribute ``initial``, one of the functions here or one like them, has
its weights drawn by it. The weights of any other model are those that its constructor made.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Draws a weight of a layer; the flag says whether it is the model's last linear layer.
Draw = Callable[[Tensor, nn.Module, bool, torch.Generator], None]

_CONVOLUTIONS = nn.Conv1d | nn.Conv2d
NORMS_OF_TORCH = nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm


def as_mest(weight: Tensor, layer: nn.Module, last: bool, generator: torch.Generator) -> None:
    """Draw a weight as MEST's release does: for networks with normalisation.

    Convolutions are Kaiming-normal (fan out), the last linear layer N(0, 0.01). Hidden linear
    layers, which MEST's networks have not, are Kaiming-normal too.
    """
    if isinstance(layer, _CONVOLUTIONS):
        fan_out = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
        std = math.sqrt(2 / fan_out)
    else:
        std = 0.01 if last else math.sqrt(2 / weight.shape[1])
    weight.normal_(0, std, generator=generator)


def glorot_uniform(
    weight: Tensor, layer: nn.Module, last: bool, generator: torch.Generator
) -> None:
    """Draw a weight from U(-a, a), a = sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010).

    The vectors of an embedding are N(0, 1), as torch has them.
    """
    if isinstance(layer, nn.Embedding):
        weight.normal_(0, 1, generator=generator)
        return
    area = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * area))
    weight.uniform_(-bound, bound, generator=generator)


def recurrent_uniform(
    weight: Tensor, layer: nn.Module, last: bool, generator: torch.Generator
) -> None:
    """Draw recurrent weights from U(-a, a), a = 1 / sqrt(hidden units); others Glorot-uniform."""
    if not isinstance(layer, nn.RNNBase):
        glorot_uniform(weight, layer, last, generator)
        return
    bound = 1 / math.sqrt(layer.hidden_size)
    weight.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def initialise(module: nn.Module, last: bool, draw: Draw, generator: torch.Generator) -> None:
    """Give a module its first weights; biases start at zero, normalisation as torch has it.

    Parameters
    ----------
    module : nn.Module
        Any; only itself, not its children.
    last : bool
        Whether it is the model's last linear layer.
    draw : callable
        Draws weights.
    generator : torch.Generator
        Source of the draw.
    """
    if isinstance(module, NORMS_OF_TORCH):
        module.reset_parameters()
        return
    for parameter in module.parameters(recurse=False):
        if parameter.dim() > 1:
            draw(parameter, module, last, generator)
        else:
            parameter.zero_()


def is_as_constructed(module: nn.Module) -> bool:
    """Whether a module's weights are those that its constructor drew.

    torch counts what is written to a tensor; constructors write once. Weights that were loaded,
    drawn in another way or replaced are not touched by :func:`initialise`.
    """
    weights = (it for it in module.parameters(recurse=False) if it.dim() > 1)
    return all(weight._version == 1 for weight in weights)
