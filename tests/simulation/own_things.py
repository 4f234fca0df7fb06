"""One thing of each kind, as a user writes them into a file of her own."""

import numpy as np
import own_helpers  # a module beside this file
import torch
from torch import nn

from mest_fed.data import load_dataset
from mest_fed.nn.optimizers import SGD
from mest_fed.server.modes.synchronous import SummedRounds
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.server.selection import Uniform
from mest_fed.simulation.behaviour.availability import Always, Diurnal
from mest_fed.sparsity import Layout
from mest_fed.sparsity.methods import Set
from mest_fed.sparsity.schemes import Block
from mest_fed.training.tasks import Classification
from mest_fed.wire.float_formats import Float16
from mest_fed.wire.values import Plain


class Scaled(nn.Module):
    """A parameter that no initialisation of ours knows, and a buffer that no state holds."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), own_helpers.SCALE))
        self.register_buffer("shift", torch.linspace(0, 1, channels), persistent=False)

    def forward(self, x):
        return x * self.scale + self.shift.view(-1, 1, 1)


def net(input_shape, num_classes):
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        Scaled(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def some_digits(path):
    del path
    data = load_dataset("digits")
    return tuple((part.inputs, part.targets) for part in (data.train, data.test))


def in_turn(labels, count):
    """Deal the examples out in turn."""
    return [np.arange(number, len(labels), count) for number in range(count)]


def negative(images, generator):
    del generator
    return 255 - images


class Pairs(Block):
    """Blocks of two rows."""

    def __init__(self, shape):
        super().__init__(shape, rows=2)


def halves(layouts: dict[str, Layout], density):
    """Give each layer half of what was asked for."""
    return dict.fromkeys(layouts, density / 2)


class Restless(Set):
    """Replaces half of the mask to the end."""

    def bounds(self, progress):
        del progress
        return super().bounds(0.0)


def falling(progress):
    return 1 - progress / 2


class FirstOnes(Uniform):
    """The nodes of the lowest numbers."""

    def select(self, call):
        return [node for node in call.nodes if node not in call.without][: call.count]


class HalfWay(ServerOptimizer):
    """Goes half of the way."""

    def update(self, gradient, moments):
        return np.float32(0.5) * gradient, moments


class Rounds(SummedRounds):
    """Synchronous rounds under a name of their own."""


class Guesses(Classification):
    """Classification under a name of its own."""


class Descent(SGD):
    """SGD under a name of its own."""


def squared(examples):
    return examples**2


class Halves(Plain):
    """Half precision with a number of its own."""

    number = 200
    dense = Float16()


class Everybody(Always):
    """All devices are there."""


def often_plugged(seed):
    return Diurnal(seed, lambda _: 0.9, spread=1.0, purpose="often")


class Lines:
    """A tracker: a line a round."""

    def __init__(self, folder):
        self.path = folder / "lines.txt"

    def begin(self, config, name, done):
        self.path.write_text(f"{name} {config.server.selection}\n" + "".join("r\n" for _ in done))

    def round_done(self, row):
        with self.path.open("a") as stream:
            stream.write(f"{row['round']}\n")

    def end(self):
        pass
