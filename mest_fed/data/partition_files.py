"""Partitions on disk, so that a device knows its examples without any partitioner."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, overload

import numpy as np
import numpy.typing as npt

from mest_fed.data.arrays import ArrayData
from mest_fed.data.minibatches import Indices
from mest_fed.errors import InputError, not_allowed
from mest_fed.rng import numpy_generator
from mest_fed.system.files import whole_file, writing
from mest_fed.units import number_of


def save_partitions(path: str | Path, parts: Sequence[Indices]) -> None:
    """Write partitions to an ``.npz`` file: all indices one after another, and the sizes.

    The file takes its name only when it is complete.

    Raises
    ------
    InputError
        If it cannot be written, because the disk is full for example.
    """
    with writing(Path(path)):
        _save(Path(path), parts)


def _save(target: Path, parts: Sequence[Indices]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    with whole_file(target) as stream:
        np.savez(stream, indices=np.concatenate(parts).astype(np.int64), sizes=sizes)


def save_share(path: str | Path, data: ArrayData, examples: Indices) -> int:
    """Write some examples to an ``.npz`` file, as a device that holds them itself reads them.

    They are the numbers of the data set, neither normalised nor changed otherwise. The file takes
    its name only when it is complete.

    Returns
    -------
    int
        How many examples there are.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    target, held = Path(path), data.examples
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as stream:
            np.savez(stream, inputs=held.inputs[examples], targets=held.targets[examples])
    return len(examples)


def load_partitions(path: str | Path, *, num_examples: int | None = None) -> list[Indices]:
    """Read partitions.

    Parameters
    ----------
    path : str or Path
        File that :func:`save_partitions` wrote.
    num_examples : int, optional
        Number of training examples of the data set; indices beyond it are an error.

    Returns
    -------
    list of int64 array
        Indices of each partition.

    Raises
    ------
    InputError
        If the file cannot be read or does not hold partitions of so many examples.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            indices, sizes = arrays["indices"], arrays["sizes"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise _wrong(path, f"cannot be read ({type(error).__name__})") from error
    for array in (indices, sizes):
        if array.dtype != np.int64 or array.ndim != 1:
            raise _wrong(path, "does not hold int64 vectors")
    if len(sizes) == 0 or sizes.min() < 1 or sizes.sum() != len(indices):
        raise _wrong(path, "has sizes that do not fit its indices")
    if indices.min() < 0 or len(np.unique(indices)) != len(indices):
        raise _wrong(path, "has negative or repeated indices")
    if num_examples is not None and indices.max() >= num_examples:
        there = number_of(num_examples, "example")
        raise _wrong(path, f"has index {indices.max()}, but the data have {there}")
    return np.split(indices, np.cumsum(sizes)[:-1])


def _wrong(path: str | Path, reason: str) -> InputError:
    return InputError(f"data.partition_file = {str(path)!r} {reason}")


@dataclass(frozen=True, eq=False)
class SampledPartitions(Sequence[Indices]):
    """Partitions drawn on demand.

    A device's mix of labels is drawn from a symmetric Dirichlet distribution over the classes, as
    Hsu, Qi & Brown (2019), "Measuring the effects of non-identical data distribution for federated
    visual classification", section 3, with a uniform prior (their alpha is ``alpha`` times the
    number of classes). How many examples it has of each class is drawn from the mix; where a class
    has too few, the rest is drawn from the mix of the other classes. Within a device no example
    stands twice; devices may share examples, so that there can be more devices than examples.

    Parameters
    ----------
    labels : int64 array
        Shape ``(n,)``.
    num_partitions : int
        Number of devices.
    examples_per_device : int
        Examples of each device, at most ``n``.
    seed : int
        The run's seed; partition ``p`` is drawn by the generator of (seed, ``"examples"``, p).
    alpha : float
        Dirichlet concentration: smaller is less alike.

    Raises
    ------
    InputError
        If a value is not allowed.
    """

    #: Partitions are drawn when they are asked for, and are in no file.
    draws_examples: ClassVar = True

    labels: npt.NDArray[np.int64]
    num_partitions: int
    examples_per_device: int
    seed: int
    alpha: float = 0.3

    def __post_init__(self) -> None:
        examples = len(self.labels)
        if self.num_partitions < 1:
            raise not_allowed("fleet.devices", self.num_partitions, "a positive whole number")
        if not 1 <= self.examples_per_device <= examples:
            allowed = f"1 to {examples}, the number of examples"
            raise not_allowed("data.examples_per_device", self.examples_per_device, allowed)
        if not 0 < self.alpha < np.inf:
            raise not_allowed("data.alpha", self.alpha, "a positive number")

    @cached_property
    def _classes(self) -> list[Indices]:
        """The examples of each class that has any."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)

    def __len__(self) -> int:
        """Return the number of devices."""
        return self.num_partitions

    @overload
    def __getitem__(self, partition: int) -> Indices: ...

    @overload
    def __getitem__(self, partition: slice) -> list[Indices]: ...

    def __getitem__(self, partition: int | slice) -> Indices | list[Indices]:
        """Draw a device's examples: increasing indices, int64, shape ``(examples_per_device,)``."""
        numbers = range(self.num_partitions)[partition]
        if isinstance(numbers, range):
            return [self._draw(number) for number in numbers]
        return self._draw(numbers)

    def _draw(self, partition: int) -> Indices:
        generator = numpy_generator(self.seed, "examples", partition)
        mix = generator.dirichlet(np.full(len(self._classes), self.alpha))
        sizes = np.array([len(members) for members in self._classes])
        counts = _counts(mix, sizes, self.examples_per_device, generator)
        chosen = [
            generator.choice(members, count, replace=False)
            for members, count in zip(self._classes, counts, strict=True)
        ]
        return np.sort(np.concatenate(chosen)).astype(np.int64)


def _counts(
    mix: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    total: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Draw how many examples of each class: ``total`` in all, none above its size."""
    counts = np.zeros_like(sizes)
    while (missing := total - int(counts.sum())) > 0:
        free = sizes - counts
        weights = np.where(free > 0, mix, 0.0)
        if not weights.sum() > 0:  # the mix has run dry: all that is left is alike
            weights = free.astype(np.float64)
        counts += np.minimum(generator.multinomial(missing, weights / weights.sum()), free)
    return counts
