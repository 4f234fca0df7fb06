"""The two-layer convolutional network of pfl-research's CIFAR-10 benchmark."""

from typing import ClassVar

from torch import Tensor, nn

from mest_fed.nn.dense import Conv2d, ReLUMaxPool2d
from mest_fed.nn.flow import Ends
from mest_fed.nn.models.initial import glorot_uniform


class CNN2(nn.Module):
    """Two unpadded 3x3 convolutions, one pooling, two linear layers: 1.6 M weights on CIFAR-10.

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width) of an image, at least 6 pixels a side.
    num_classes : int
        Outputs.
    width : float
        Factor on the 32 and 64 channels and on the 128 hidden units.
    norm : str
        Accepted as an earlier version did; the network has no normalisation.
    """

    #: Nothing corrects the size of its activations: its first weights must see to it.
    initial: ClassVar = staticmethod(glorot_uniform)
    segments: ClassVar = {"features": ("conv1", "conv2")}
    #: Narrower ones have the first channels of each layer.
    nested_widths: ClassVar = True
    calls_fused: ClassVar = True
    ends: ClassVar = Ends(stem=("conv1",), head=("classifier",), shortcuts=())

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        norm: str = "group",
    ) -> None:
        super().__init__()
        channels, height, side = input_shape
        first, second, hidden = (max(1, round(base * width)) for base in (32, 64, 128))
        self.conv1 = Conv2d(channels, first, 3)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.relu = nn.ReLU(inplace=True)
        self.relu_pool = ReLUMaxPool2d()
        self.hidden = nn.Linear(second * ((height - 4) // 2) * ((side - 4) // 2), hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to pooled features (n, channels, h / 2 - 2, w / 2 - 2)."""
        x = self.relu(self.conv1(x))
        pooled: Tensor = self.relu_pool(self.conv2(x))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to logits (n, classes)."""
        x = self.features(x)
        x = self.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.classifier(x)
        return logits
