"""The layers that kernels.py times, each with its batch and its densities."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A layer and its input: a 3x3 convolution of padding 1, or with ``side`` 0 a linear layer."""

    inputs: int
    outputs: int
    side: int = 0
    stride: int = 1
    batch: int = 32
    densities: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02)

    def layer(self, generator: torch.Generator) -> nn.Conv2d | nn.Linear:
        """Build the dense layer."""
        with torch.device("meta"):  # constructors would draw from the global generator
            if self.side:
                layer = nn.Conv2d(self.inputs, self.outputs, 3, self.stride, 1, bias=False)
            else:
                layer = nn.Linear(self.inputs, self.outputs, bias=False)
        layer.to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)
        return layer

    def input(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw an input that requires a gradient."""
        image = (self.side, self.side) if self.side else ()
        x = torch.randn(batch, self.inputs, *image, generator=generator)
        return x.requires_grad_()


#: CHANNELS@SIDE, IN-OUT@SIDE/STRIDE, or IN-OUT of a linear layer.
LAYERS = {
    "32@32": Shape(32, 32, 32),
    "64@16": Shape(64, 64, 16),
    "128@8": Shape(128, 128, 8),
    "64@32": Shape(64, 64, 32, densities=(0.05,)),
    "32-64@32/2": Shape(32, 64, 32, stride=2),
    "64-128@16/2": Shape(64, 128, 16, stride=2),
    "768-3072": Shape(768, 3072, batch=512, densities=(0.02,)),
}
