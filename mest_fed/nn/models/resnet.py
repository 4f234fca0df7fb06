"""Residual networks for small images, with a width factor and projection shortcuts.

ResNet-8, -20 and -32 are those of He et al. 2016, section 4.2: three stages. MEST's ResNet-32 is
``width=2``: stages of 32, 64 and 128 channels. ResNet-18 has the four stages of their section 4.1
behind the stem of the others: a 3x3 convolution of stride 1, and no pooling. ResNet-50 has four
such stages of bottlenecks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from mest_fed.catalogue import NORMS
from mest_fed.nn.dense import Conv2d
from mest_fed.nn.flow import Ends
from mest_fed.nn.models.initial import as_mest


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion: ClassVar = 1
    channel_pairs = (("conv1", "conv2"),)
    segments: ClassVar = {"forward": ()}
    calls_fused: ClassVar = True

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = NORMS.build(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = NORMS.build(norm, channels)
        self.shortcut = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.norm1(self.conv1(x), relu=True)
        z: Tensor = self.norm2(self.conv2(y), residual=self.shortcut(x), relu=True)
        return z


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution to four times the channels, with a shortcut."""

    expansion: ClassVar = 4
    channel_pairs = (("conv1", "conv2"),)
    segments: ClassVar = {"forward": ()}
    calls_fused: ClassVar = True

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = NORMS.build(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.norm2 = NORMS.build(norm, channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm3 = NORMS.build(norm, out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, 4 * channels, h / stride, w / stride)."""
        y = self.norm1(self.conv1(x), relu=True)
        y = self.norm2(self.conv2(y), relu=True)
        z: Tensor = self.norm3(self.conv3(y), residual=self.shortcut(x), relu=True)
        return z


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    projection = Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, NORMS.build(norm, out_channels))


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a classifier; all but the first stage halve the side.

    Parameters
    ----------
    stages : sequence of int
        Channels of each stage at width 1.
    blocks : int or sequence of int
        Residual blocks of each stage.
    input_shape : tuple of int
        (channels, height, width) of an image.
    num_classes : int
        Outputs.
    width : float
        Factor on the channels of the stages.
    norm : str
        A name of :data:`~mest_fed.catalogue.NORMS`.
    block : type
        ``ResidualBlock`` or ``Bottleneck``.
    """

    initial: ClassVar = staticmethod(as_mest)
    segments: ClassVar = {"stem": ("conv1", "norm1")}
    #: Narrower ones have the first channels of each layer.
    nested_widths: ClassVar = True
    calls_fused: ClassVar = True

    def __init__(
        self,
        stages: Sequence[int],
        blocks: int | Sequence[int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "batch",
        block: type[ResidualBlock] | type[Bottleneck] = ResidualBlock,
    ) -> None:
        super().__init__()
        channels = [max(1, round(base * width)) for base in stages]
        self.conv1 = Conv2d(input_shape[0], channels[0], 3, 1, 1, bias=False)
        self.norm1 = NORMS.build(norm, channels[0])
        self.num_stages = len(channels)
        depths = [blocks] * len(channels) if isinstance(blocks, int) else blocks
        before = channels[0]
        for i, (after, depth) in enumerate(zip(channels, depths, strict=True)):
            stage = nn.Sequential()
            for number in range(depth):
                stage.append(block(before, after, 2 if i and not number else 1, norm))
                before = after * block.expansion
            self.add_module(f"stage{i + 1}", stage)
        self.classifier = nn.Linear(before, num_classes)

    @property
    def ends(self) -> Ends:
        """Stem, classifier, and the shortcuts of those blocks that project."""
        shortcuts = (name for name, _ in self.named_modules() if name.endswith(".shortcut.0"))
        return Ends(stem=("conv1",), head=("classifier",), shortcuts=tuple(shortcuts))

    def stem(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to (n, channels, h, w)."""
        y: Tensor = self.norm1(self.conv1(x), relu=True)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits (n, classes)."""
        x = self.stem(x)
        for number in range(1, self.num_stages + 1):
            # Block by block: a call of the stage would hold its input until its end.
            for block in self.get_submodule(f"stage{number}").children():
                x = block(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class ResNetBuilder:
    """Builds a ResNet.

    Parameters
    ----------
    stages, blocks, block : sequence of int, int or sequence of int, type
        As those of :class:`ResNet`.
    usual_width : float
        Factor on the channel counts that the network usually has in papers.
    """

    stages: Sequence[int]
    blocks: int | Sequence[int]
    block: type[ResidualBlock] | type[Bottleneck] = ResidualBlock
    usual_width: float = 1.0

    def __call__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "batch",
    ) -> ResNet:
        """Build the network; parameters as those of :class:`ResNet`."""
        return ResNet(
            self.stages,
            self.blocks,
            input_shape,
            num_classes,
            width=width,
            norm=norm,
            block=self.block,
        )


resnet8 = ResNetBuilder((16, 32, 64), blocks=1)
resnet18 = ResNetBuilder((64, 128, 256, 512), blocks=2)
resnet20 = ResNetBuilder((16, 32, 64), blocks=3)
resnet32 = ResNetBuilder((16, 32, 64), blocks=5, usual_width=2.0)  # MEST's
resnet50 = ResNetBuilder((64, 128, 256, 512), blocks=(3, 4, 6, 3), block=Bottleneck)
