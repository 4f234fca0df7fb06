"""Model, data and task of a study of one's own: how bright each column of an image is."""

import sys

import torch
from torch import nn

from mest_fed import Metric, Objective

if "default_worker" in sys.argv[0] and "." not in __name__:  # else it is in an app's bundle
    # A worker imports what the driver sent, and does not look for the file.
    assert type(__loader__).__module__ == "mest_fed.own_code"


def net(input_shape, num_classes, hidden=24):
    layers = [nn.Conv2d(input_shape[0], 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(512, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


def columns(path, examples=160):
    """Return images and the mean of each column."""
    del path
    pixels = torch.rand(examples, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    means, train = pixels.mean((1, 2)), examples - 40
    return (pixels[:train], means[:train]), (pixels[train:], means[train:])


class Brightness(Objective):
    """Half of the squared error, and how many columns are near enough."""

    metrics = (Metric("near", higher_is_better=True, share=True),)
    least_loss = 0.0

    def __init__(self, distance=0.1):
        self.distance = distance

    def losses(self, outputs, targets):
        return (outputs - targets).square().mean(1) / 2

    def sums(self, outputs, targets):
        return {"near": ((outputs - targets).abs() <= self.distance).double().mean(1).sum()}

    def values(self, sums):
        return {"near": sums["near"] / sums["count"]}

    def num_outputs(self, target_shape, num_classes):
        del num_classes
        return target_shape[0]

    def output_shapes(self, target_shape, num_outputs):
        del num_outputs
        return [target_shape]
