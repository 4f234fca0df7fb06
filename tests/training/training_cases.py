"""Small batches and models for training, seeded without the global generator."""

import numpy as np
import torch
from torch import nn

from mest_fed.data import Batch
from mest_fed.nn import build_model, sparsify


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(count, size=8, dtype=torch.float32):
    """Return batches of 8x8 images with random labels; examples are numbered through."""
    source = generator(7)
    return [
        Batch(
            torch.randn(size, 1, 8, 8, generator=source, dtype=dtype),
            torch.randint(10, (size,), generator=source),
            np.arange(number * size, (number + 1) * size),
        )
        for number in range(count)
    ]


def model(scheme=None, density=0.25, norm="group"):
    """Return ResNet-8 with 4 / 8 / 16 channels, dense or sparse."""
    net = build_model("resnet8", (1, 8, 8), 10, generator=generator(), width=0.25, norm=norm)
    return net if scheme is None else sparsify(net, scheme, density)


class Constant(nn.Module):
    """Logits that do not depend on the image: a bias alone."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)
