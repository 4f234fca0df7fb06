"""Minibatches: normalised, perhaps augmented, in a random order."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mest_fed.catalogue import AUGMENTATIONS
from mest_fed.data.arrays import ArrayData, Indices
from mest_fed.errors import InputError, not_allowed

_PADDING = 4


def unchanged(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images: no augmentation."""
    del generator
    return images


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


@dataclass(frozen=True)
class ImageAugmentation:
    """An augmentation that is for images alone."""

    augment: Callable[[Tensor, torch.Generator], Tensor]
    for_images: ClassVar[bool] = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images, changed."""
        return self.augment(images, generator)


CROP_FLIP = ImageAugmentation(crop_flip)


@dataclass(frozen=True, eq=False)
class Batch:
    """A minibatch.

    Parameters
    ----------
    inputs : Tensor
        float32, shape ``(n, ...)``: ``(value - mean) / std``, where a value of uint8 is in units
        of 255; or int64 tokens.
    targets : Tensor
        int64 or float32, shape ``(n, ...)``.
    examples : int64 array
        Shape ``(n,)``: the position of each example among the client's own.
    """

    inputs: Tensor
    targets: Tensor
    examples: Indices


class Batches:
    """Minibatches of a client's examples; each iteration is one epoch.

    The last batch is smaller where the number of examples asks for it. A lone last example joins
    the batch before it, since batch statistics need two.

    Parameters
    ----------
    data : ArrayData
        Examples of all clients; they keep their type until they are batched.
    indices : int64 array
        The client's examples.
    batch_size : int
        Examples in a batch.
    generator : torch.Generator, optional
        Draws the order and the augmentation anew in each iteration. Without one, examples come in
        order.
    augmentation : str
        A name of :data:`~mest_fed.catalogue.AUGMENTATIONS`; all but ``none`` need a generator.
    kept : int64 array, optional
        Positions in ``indices`` to present; all by default.

    Raises
    ------
    InputError
        If the batch size or the augmentation is not allowed.
    """

    def __init__(
        self,
        data: ArrayData,
        indices: Indices,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augmentation: str = "none",
        kept: Indices | None = None,
    ) -> None:
        if batch_size < 1:
            raise not_allowed("training.batch_size", batch_size, "a positive whole number")
        augment = AUGMENTATIONS.find(augmentation)
        if _is_for_images(augment) and (data.inputs.dim() != 4 or data.inputs.dtype == torch.int64):
            shape = " x ".join(map(str, data.inputs.shape[1:]))
            others = [name for name, each in AUGMENTATIONS.items() if not _is_for_images(each)]
            raise InputError(
                f"{AUGMENTATIONS.key} = {augmentation!r} is for images; allowed for inputs of "
                f"{shape}: {', '.join(others)}"
            )
        if augment is not unchanged and generator is None:
            raise ValueError("augmentation needs a generator")
        self._data = data
        self._indices = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        self._kept = torch.arange(len(indices)) if kept is None else torch.from_numpy(kept)
        self._batch_size = batch_size
        self._generator = generator
        self._augment = augment
        self._mean = _per_channel(data.mean, data.inputs)
        self._std = _per_channel(data.std, data.inputs)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._starts())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        order = self._kept
        if self._generator is not None:
            order = order[torch.randperm(len(order), generator=self._generator)]
        bounds = [*self._starts(), len(order)]
        for start, stop in itertools.pairwise(bounds):
            yield self._batch(order[start:stop])

    def _starts(self) -> list[int]:
        count = len(self._kept)
        starts = list(range(0, count, self._batch_size))
        if self._batch_size > 1 and len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()
        return starts

    def _batch(self, examples: Tensor) -> Batch:
        rows = self._indices[examples]
        inputs = self._data.inputs[rows]
        if self._generator is not None:
            inputs = self._augment(inputs, self._generator)
        if self._mean is not None and self._std is not None:
            inputs = inputs.to(torch.float32).sub_(self._mean).div_(self._std)
        return Batch(inputs, self._data.targets[rows], examples.numpy())


def _is_for_images(augment: object) -> bool:
    return getattr(augment, "for_images", False)


def _per_channel(values: tuple[float, ...], inputs: Tensor) -> Tensor | None:
    """Return statistics in the inputs' units, one for each index of their second dimension."""
    if not values:
        return None
    wide = torch.tensor(values).view(-1, *(1,) * (inputs.dim() - 2))
    return wide * 255 if inputs.dtype == torch.uint8 else wide
