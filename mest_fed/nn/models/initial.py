"""How models' weights are drawn at the start."""

import math
from collections.abc import Callable

import torch
from torch import nn

Draw = Callable[[nn.Conv2d | nn.Linear, bool, torch.Generator], None]


def as_mest(layer: nn.Conv2d | nn.Linear, last: bool, generator: torch.Generator) -> None:
    """Draw a layer as MEST's release does: for networks with normalisation.

    Convolutions are Kaiming-normal (fan out), the last linear layer N(0, 0.01). Hidden linear
    layers, which MEST's networks have not, are Kaiming-normal too.
    """
    if isinstance(layer, nn.Conv2d):
        std = math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size)))
    else:
        std = 0.01 if last else math.sqrt(2 / layer.in_features)
    layer.weight.normal_(0, std, generator=generator)


def glorot_uniform(layer: nn.Conv2d | nn.Linear, last: bool, generator: torch.Generator) -> None:
    """Draw any layer from U(-a, a), a = sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010)."""
    area = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
    bound = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * area))
    layer.weight.uniform_(-bound, bound, generator=generator)


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
    if isinstance(module, nn.Conv2d | nn.Linear):
        draw(module, last, generator)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        module.reset_parameters()
