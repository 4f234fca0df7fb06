"""Small networks for vectors and for series, such as those of activity data."""

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mest_fed.catalogue import NORMS
from mest_fed.nn.flow import Ends
from mest_fed.nn.models.initial import as_mest, glorot_uniform


class MLP(nn.Module):
    """Linear layers with ReLU; its inputs, of any shape, are flattened.

    Parameters
    ----------
    input_shape : tuple of int
        Of one example.
    num_classes : int
        Outputs.
    width : float
        Factor on the hidden units.
    hidden : sequence of int
        Units of each hidden layer.
    """

    #: Narrower ones have the first channels of each layer.
    nested_widths: ClassVar = True
    initial: ClassVar = staticmethod(glorot_uniform)
    ends: ClassVar = Ends(stem=(), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        width: float = 1.0,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        before = math.prod(input_shape)
        self.hidden = nn.Sequential()
        for base in hidden:
            units = max(1, round(base * width))
            self.hidden.append(nn.Sequential(nn.Linear(before, units), nn.ReLU()))
            before = units
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, ...) to logits (n, classes)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x)
        logits: Tensor = self.classifier(x)
        return logits


class SeriesBlock(nn.Module):
    """A 1-D convolution, normalisation, ReLU, and the larger of each two values."""

    segments: ClassVar = {"forward": ()}

    def __init__(self, in_channels: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, channels, 5, padding=2, bias=False)
        self.norm = NORMS.build(norm, channels)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool1d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, length) to (n, channels, length / 2)."""
        # Our normalisations take planes.
        y = self.norm(self.conv(x).unsqueeze(2)).squeeze(2)
        z: Tensor = self.pool(self.relu(y))
        return z


class SeriesNet(nn.Module):
    """1-D convolutions for series of a few channels, such as accelerations and rotations.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, length) of a series.
    num_classes : int
        Outputs.
    width : float
        Factor on the channel counts.
    norm : str
        A name of :data:`~mest_fed.catalogue.NORMS`.
    channels : sequence of int
        Of each block.
    """

    #: Narrower ones have the first channels of each layer.
    nested_widths: ClassVar = True
    initial: ClassVar = staticmethod(as_mest)
    ends: ClassVar = Ends(stem=("blocks.0.conv",), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "batch",
        channels: Sequence[int] = (64, 128, 128),
    ) -> None:
        super().__init__()
        before = input_shape[0]
        self.blocks = nn.Sequential()
        for base in channels:
            after = max(1, round(base * width))
            self.blocks.append(SeriesBlock(before, after, norm))
            before = after
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map series (n, channels, length) to logits (n, classes)."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.mean(dim=2))
        return logits
