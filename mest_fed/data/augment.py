"""Random crops and horizontal flips of whole minibatches."""

import torch
from torch import Tensor, nn

AUGMENTATIONS = ("none", "crop-flip")

_PADDING = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels into zeros, and mirror half of them.

    The usual augmentation of CIFAR (He et al. 2016, section 4.2): pad by 4, crop to the old size.

    Parameters
    ----------
    images : Tensor
        Shape ``(n, channels, height, width)``, any type.
    generator : torch.Generator
        Draws the shifts and the flips, one of each for each image.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (_PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (n, c, 9, 9, h, w)
    top, left = torch.randint(0, 2 * _PADDING + 1, (2, count), generator=generator)
    cropped = windows[torch.arange(count), :, top, left]
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)
