"""The network of NVFlare's edge example, of stock layers: 62,006 weights."""

from torch import nn


def build(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return two 5x5 convolutions of stride 2 and three linear layers, for images of 32x32."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 6, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
