"""The models by name, initialised from an explicit generator."""

import math
from collections.abc import Callable

import torch
from torch import nn

from mest_fed.errors import not_allowed
from mest_fed.nn.models.cnn import CNN2
from mest_fed.nn.models.resnet import ResNet, resnet

__all__ = ["CNN2", "MODELS", "ResNet", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet((16, 32, 64), blocks=1),
    "resnet18": resnet((64, 128, 256, 512), blocks=2),
    "resnet20": resnet((16, 32, 64), blocks=3),
    "resnet32": resnet((16, 32, 64), blocks=5),
    "cnn2": CNN2,
}


def build_model(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    generator: torch.Generator,
    width: float = 1.0,
    norm: str = "batch",
) -> nn.Module:
    """Build a model with weights drawn from ``generator``.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    input_shape : tuple of int
        (channels, height, width) of an image.
    num_classes : int
        Outputs.
    generator : torch.Generator
        Source of the initial weights.
    width : float
        Factor on the channel counts.
    norm : {"batch", "group"}
        Normalisation layer.

    Raises
    ------
    InputError
        If the name, width or norm is not allowed.
    """
    if name not in MODELS:
        raise not_allowed("model", name, MODELS)
    if norm not in ("batch", "group"):
        raise not_allowed("norm", norm, ("batch", "group"))
    if not 0 < width <= 16:
        raise not_allowed("width", width, "a number in (0, 16]")
    with torch.device("meta"):  # constructors would draw from the global generator
        model = MODELS[name](input_shape, num_classes, width=width, norm=norm)
    _materialise(model)
    initialise(model, generator)
    return model


def _materialise(model: nn.Module) -> None:
    """Give a model on the meta device memory on the CPU.

    Not ``Module.to_empty``: its ``empty_like`` of meta tensors imports torch's Python decompositions
    and with them sympy, 36 MB that a small device would carry ever after.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            real = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(real, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights: Kaiming-normal (fan out) convolutions, N(0, 0.01) linear layers.

    As MEST's release does, but for hidden linear layers, which are Kaiming-normal too.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            _draw(module, math.sqrt(2 / fan_out), generator)
        elif isinstance(module, nn.Linear):
            last = module is linears[-1]
            _draw(module, 0.01 if last else math.sqrt(2 / module.in_features), generator)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()


def _draw(module: nn.Conv2d | nn.Linear, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        module.weight.normal_(0, std, generator=generator)
        if module.bias is not None:
            module.bias.zero_()
