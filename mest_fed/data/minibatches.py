"""Minibatches of arrays: normalised, perhaps augmented, in a random order. Needs NumPy alone."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import AUGMENTATIONS
from mest_fed.errors import InputError, not_allowed

Array = npt.NDArray[Any]
#: Positions of examples in a data set, or among a client's own.
Indices = npt.NDArray[np.int64]

_PADDING = 4
#: Images that are shifted at a time: so many have room beside a batch.
_SHIFTED = 8


def unchanged(images: Array, generator: np.random.Generator) -> Array:
    """Return the images: no augmentation."""
    del generator
    return images


def crop_flip(images: Array, generator: np.random.Generator) -> Array:
    """Shift each image by up to 4 pixels into zeros, and mirror half of them.

    The usual augmentation of CIFAR (He et al. 2016, section 4.2): pad by 4, crop to the old size.

    Parameters
    ----------
    images : array
        Shape ``(n, channels, height, width)``, any type.
    generator : numpy.random.Generator
        Draws the shifts and the flips, one of each for each image.
    """
    return crop_flip_in_place(images.copy(), generator)


def crop_flip_in_place(images: Array, generator: np.random.Generator) -> Array:
    """Do as :func:`crop_flip`; the result takes the place of the images."""
    count, channels, height, width = images.shape
    top, left = generator.integers(2 * _PADDING + 1, size=(2, count))
    mirrored = np.less(generator.random(count), 0.5)
    sides = height + 2 * _PADDING, width + 2 * _PADDING
    padded = np.zeros((min(count, _SHIFTED), channels, *sides), images.dtype)
    inner = padded[:, :, _PADDING:-_PADDING, _PADDING:-_PADDING]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    for first in range(0, count, _SHIFTED):
        shown = images[first : first + _SHIFTED]
        some = slice(first, first + len(shown))
        inner[: len(shown)] = shown
        shown[...] = windows[np.arange(len(shown)), :, top[some], left[some]]
        shown[mirrored[some]] = shown[mirrored[some], ..., ::-1]
    return images


@dataclass(frozen=True)
class ImageAugmentation:
    """An augmentation that is for images alone."""

    augment: Callable[[Array, np.random.Generator], Array]
    for_images: ClassVar[bool] = True

    def __call__(self, images: Array, generator: np.random.Generator) -> Array:
        """Return the images, changed."""
        return self.augment(images, generator)


CROP_FLIP = ImageAugmentation(crop_flip_in_place)


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in memory, and what their batches are normalised by.

    Parameters
    ----------
    inputs : array
        Shape ``(n, ...)``: uint8, float32, or int64 tokens. They are read only.
    targets : array
        int64 or float32, shape ``(n, ...)``.
    mean, std : tuple of float
        One number for each index of the inputs' second dimension, in units of 255 for uint8.
        Empty: inputs stay as they are.
    """

    inputs: Array
    targets: Array
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def normalised(self, inputs: Array, *, spent: bool = False) -> Array:
        """Return ``(value - mean) / std`` as float32; what has no mean as it is.

        Nobody needs inputs that are ``spent``: the result may take their place.
        """
        if not self.mean:
            return inputs
        result: Array = inputs.astype(np.float32, copy=not spent)
        mean, std = self._statistics
        result -= mean
        result /= std
        return result

    @cached_property
    def _statistics(self) -> tuple[Array, Array]:
        """Mean and deviation as arrays, in the inputs' own units."""
        unit = np.float32(255 if self.inputs.dtype == np.uint8 else 1)
        shape = -1, *(1,) * (self.inputs.ndim - 2)
        mean, std = (np.array(it, np.float32).reshape(shape) for it in (self.mean, self.std))
        return mean * unit, std * unit


class Rows:
    """Inputs of a batch: a part of them is made when its turn comes, and takes memory until then.

    Parameters
    ----------
    examples : Examples
        What they are made of.
    rows : int64 array
        Which of them, in order.
    augmented : array, optional
        Those examples, not yet normalised, where an augmentation has changed them.
    """

    def __init__(self, examples: Examples, rows: Indices, augmented: Array | None = None) -> None:
        self._examples, self._rows, self._augmented = examples, rows, augmented
        source = examples.inputs if augmented is None else augmented
        self.shape = (len(rows), *source.shape[1:])
        self.dtype = np.dtype(np.float32) if examples.mean else source.dtype

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)

    def make(self, part: slice) -> Array:
        """Make some of them."""
        if self._augmented is not None:
            return self._examples.normalised(self._augmented[part])
        return self._examples.normalised(self._examples.inputs[self._rows[part]], spent=True)


#: Numbers of a sample that tells the scale; what its mean and deviation may be after normalising,
#: since one device's examples are no fair sample of the run's.
_SAMPLE, _MOST_MEAN, _DEVIATIONS = 100_000, 4.0, (0.1, 8.0)
#: So many numbers are not all above a mean by chance.
_MANY = 1000
#: Deviations below a mean that count as none: a run's mean is never 0 to the last bit.
_ABOUT = 0.05


def scale_fault(examples: Examples) -> str | None:
    """Say that examples are far from the scale of those that a run's statistics are of.

    Parameters
    ----------
    examples : Examples
        A device's own, with the run's statistics.

    Returns
    -------
    str or None
        One line; None if the scale is as it should be, or the run's statistics do not tell.
    """
    told = any(each != 0 for each in examples.mean) or any(each != 1 for each in examples.std)
    if not told or not len(examples.inputs):
        return None
    count = min(64, max(1, _SAMPLE // max(1, examples.inputs[0].size)))
    sample = examples.inputs[:: max(1, len(examples.inputs) // count)][:count]
    values = examples.normalised(sample)
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    near = abs(mean) <= _MOST_MEAN and _DEVIATIONS[0] <= deviation <= _DEVIATIONS[1]
    if near and not _is_unit_of_standardised(sample, values):
        return None
    allowed = "uint8 from 0 to 255" if sample.dtype == np.uint8 else "values as the run's data have"
    return (
        f"the examples' scale is far from the run's: inputs are {sample.dtype} from "
        f"{sample.min():.4g} to {sample.max():.4g}, which the run's mean and deviation make into "
        f"values of mean {mean:.3g} and deviation {deviation:.3g}; expected: about 0 and 1, of "
        f"{allowed}"
    )


def _is_unit_of_standardised(sample: Array, values: Array) -> bool:
    """Say whether floats from 0 to 1 stand for what the run has around 0.

    Of standardised data about half lies below the run's mean, and of images from 0 to 1 whose
    statistics the run has, too: none of so many numbers does by chance.
    """
    if sample.dtype.kind != "f" or values.size < _MANY:
        return False
    return bool(sample.min() >= 0 and sample.max() <= 1 and values.min() >= -_ABOUT)


class Minibatches:
    """Minibatches of some examples; each iteration is one epoch.

    The last batch is smaller where the number of examples asks for it. A lone last example joins
    the batch before it, since batch statistics need two.

    Parameters
    ----------
    examples : Examples
        Of all clients; they keep their type until they are batched.
    indices : int64 array
        The client's examples.
    batch_size : int
        Examples in a batch.
    generator : numpy.random.Generator, optional
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
        examples: Examples,
        indices: Indices,
        batch_size: int,
        *,
        generator: np.random.Generator | None = None,
        augmentation: str = "none",
        kept: Indices | None = None,
    ) -> None:
        if batch_size < 1:
            raise not_allowed("training.batch_size", batch_size, "a positive whole number")
        augment = AUGMENTATIONS.find(augmentation)
        images = examples.inputs.ndim == 4 and examples.inputs.dtype != np.int64
        if _is_for_images(augment) and not images:
            shape = " x ".join(map(str, examples.inputs.shape[1:]))
            others = [name for name, each in AUGMENTATIONS.items() if not _is_for_images(each)]
            raise InputError(
                f"{AUGMENTATIONS.key} = {augmentation!r} is for images; allowed for inputs of "
                f"{shape}: {', '.join(others)}"
            )
        if augment is not unchanged and generator is None:
            raise ValueError("augmentation needs a generator")
        self._examples = examples
        self._indices = np.asarray(indices, np.int64)
        self._kept = np.arange(len(indices)) if kept is None else kept
        self._batch_size = batch_size
        self._generator = generator
        self._augment = augment

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._starts())

    def epoch(self) -> Iterator[tuple[Rows, Array, Indices]]:
        """Yield the batches of one epoch: inputs, targets, positions in ``indices``."""
        order = self._kept
        if self._generator is not None:
            order = order[self._generator.permutation(len(order))]
        for start, stop in itertools.pairwise([*self._starts(), len(order)]):
            yield self._batch(order[start:stop])

    def _starts(self) -> list[int]:
        return batch_starts(len(self._kept), self._batch_size)

    def _batch(self, positions: Indices) -> tuple[Rows, Array, Indices]:
        rows, augmented = self._indices[positions], None
        if self._generator is not None and self._augment is not unchanged:
            augmented = self._augment(self._examples.inputs[rows], self._generator)
        inputs = Rows(self._examples, rows, augmented)
        return inputs, self._examples.targets[rows], positions


def batch_starts(examples: int, batch_size: int) -> list[int]:
    """Return where the batches of an epoch begin; a lone last example is part of another's."""
    starts = list(range(0, examples, batch_size))
    if batch_size > 1 and len(starts) > 1 and examples - starts[-1] == 1:
        starts.pop()
    return starts


def _is_for_images(augment: object) -> bool:
    return getattr(augment, "for_images", False)
