"""Models as users bring them: one of their own, and a copy of one of ours."""

import sys

import own_sizes  # a module beside this file
from torch import nn

from mest_fed.nn.models.resnet import ResNet

if "default_worker" in sys.argv[0]:
    # A worker imports what the driver sent, and does not look for the file.
    assert type(__loader__).__module__ == "mest_fed.own_code"
    assert type(own_sizes.__loader__).__module__ == "mest_fed.own_code"


def build(input_shape, num_classes, depth=1):
    channels = own_sizes.CHANNELS
    layers = [nn.Conv2d(input_shape[0], channels, 3, padding=1), nn.BatchNorm2d(channels)]
    for _ in range(depth):
        layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)


def ours(input_shape, num_classes, width=1.0, norm="batch"):
    return ResNet((16, 32, 64), 1, input_shape, num_classes, width=width, norm=norm)


def wide(input_shape, num_classes):
    del input_shape
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, num_classes))
