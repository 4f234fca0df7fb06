"""Networks of depthwise and 1x1 convolutions for small devices.

MobileNetV2 (Sandler et al. 2018) for small images: the stem and the first two groups of blocks keep
the size, as is usual for CIFAR-10. DS-CNN (Zhang et al. 2017, "Hello Edge") for keyword spotting.

Depthwise convolutions have 9 weights a channel and stay dense; the 1x1 convolutions hold nearly all
weights.
"""

from typing import ClassVar

from torch import Tensor, nn

from mest_fed.catalogue import NORMS
from mest_fed.nn.dense import Conv2d
from mest_fed.nn.flow import Ends
from mest_fed.nn.models.initial import as_mest

#: Expansion, channels, blocks and first stride of each group of blocks (Sandler et al., table 2,
#: with a stride of 1 instead of 2 in the second one).
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise one, and a linear 1x1 one to few channels."""

    segments: ClassVar = {"forward": ()}

    def __init__(
        self, in_channels: int, channels: int, stride: int, expansion: int, *, norm: str
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = nn.Sequential()
        if expansion != 1:
            self.expand = nn.Sequential(
                nn.Conv2d(in_channels, wide, 1, bias=False), NORMS.build(norm, wide), nn.ReLU6()
            )
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.norm = NORMS.build(norm, wide)
        self.relu = nn.ReLU6()
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.project_norm = NORMS.build(norm, channels)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.relu(self.norm(self.depthwise(self.expand(x))))
        z: Tensor = self.project_norm(self.project(y))
        return x + z if self.adds else z


class MobileNetV2(nn.Module):
    """A stem, groups of inverted residual blocks, a 1x1 convolution, and a classifier.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of an image.
    num_classes : int
        Outputs.
    width : float
        Factor on the channel counts.
    norm : str
        A name of :data:`~mest_fed.catalogue.NORMS`.
    """

    initial: ClassVar = staticmethod(as_mest)
    segments: ClassVar = {"stem": ("conv1", "norm1"), "top": ("conv2", "norm2")}
    ends: ClassVar = Ends(stem=("conv1",), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        before, last = _scaled(32, width), _scaled(1280, max(1.0, width))
        self.conv1 = Conv2d(input_shape[0], before, 3, 1, 1, bias=False)
        self.norm1 = NORMS.build(norm, before)
        self.relu = nn.ReLU6()
        self.blocks = nn.Sequential()
        for expansion, base, count, stride in _GROUPS:
            after = _scaled(base, width)
            for number in range(count):
                step = stride if number == 0 else 1
                self.blocks.append(InvertedResidual(before, after, step, expansion, norm=norm))
                before = after
        self.conv2 = nn.Conv2d(before, last, 1, bias=False)
        self.norm2 = NORMS.build(norm, last)
        self.classifier = nn.Linear(last, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to (n, channels, h, w)."""
        y: Tensor = self.relu(self.norm1(self.conv1(x)))
        return y

    def top(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, more channels, h, w)."""
        y: Tensor = self.relu(self.norm2(self.conv2(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits (n, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.top(x).mean(dim=(2, 3)))
        return logits


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with normalisation and ReLU."""

    segments: ClassVar = {"forward": ()}
    calls_fused: ClassVar = True

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.norm1 = NORMS.build(norm, channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = NORMS.build(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        y = self.norm1(self.depthwise(x), relu=True)
        z: Tensor = self.norm2(self.pointwise(y), relu=True)
        return z


class DSCNN(nn.Module):
    """DS-CNN: a 10x4 convolution of stride 2 and four depthwise separable blocks.

    ``width`` 1, 2.7 and 4.3 are about the small, medium and large one of the paper (64, 172 and 276
    channels).

    Parameters
    ----------
    input_shape : tuple of int
        (channels, time, coefficients), such as 1x49x10.
    num_classes : int
        Outputs.
    width : float
        Factor on the channel counts.
    norm : str
        A name of :data:`~mest_fed.catalogue.NORMS`.
    """

    initial: ClassVar = staticmethod(as_mest)
    segments: ClassVar = {"stem": ("conv1", "norm1")}
    #: Narrower ones have the first channels of each layer.
    nested_widths: ClassVar = True
    calls_fused: ClassVar = True
    ends: ClassVar = Ends(stem=("conv1",), head=("classifier",))

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        channels = _scaled(64, width)
        self.conv1 = Conv2d(input_shape[0], channels, (10, 4), 2, (5, 1), bias=False)
        self.norm1 = NORMS.build(norm, channels)
        self.blocks = nn.Sequential(*(SeparableBlock(channels, norm) for _ in range(4)))
        self.classifier = nn.Linear(channels, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Map (n, c, time, coefficients) to (n, channels, about time / 2, coefficients / 2)."""
        y: Tensor = self.norm1(self.conv1(x), relu=True)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, time, coefficients) to logits (n, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def _scaled(base: int, width: float) -> int:
    return max(1, round(base * width))
