"""Data for workers on other machines: Ray brings it there, once a machine; no disk is shared."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mest_fed.config.load import Scalar
from mest_fed.data import DataSplit, ImageData
from mest_fed.task import Examples, Task, furnish

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class PlacedData:
    """A run's data, as arrays that processes of a machine share.

    Parameters
    ----------
    run_config : mapping of str to scalar
        The run, as its clients see it.
    facts : tuple
        Number of classes, mean and deviation of the channels.
    train, test : (array, array)
        Images, uint8 of shape (n, channels, height, width), and labels, int64 of shape (n,).
    examples, ends : array or None
        int64: examples of all partitions, and where each partition ends; None where each device's
        examples are drawn when they are asked for.
    """

    run_config: Mapping[str, Scalar]
    facts: tuple[int, tuple[float, ...], tuple[float, ...]]
    train: Arrays
    test: Arrays
    examples: npt.NDArray[np.int64] | None
    ends: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, task: Task, run_config: Mapping[str, Scalar]) -> "PlacedData":
        """Take the data of a task."""
        train, test = task.data.train, task.data.test
        facts = (train.num_classes, train.mean, train.std)
        examples = ends = None
        if not task.draws_examples:
            examples = np.concatenate(task.partitions)
            ends = np.cumsum([len(part) for part in task.partitions])
        return cls(run_config, facts, _arrays(train), _arrays(test), examples, ends)

    def install(self) -> None:
        """Give it to this process's task."""
        data = DataSplit(self._images(self.train), self._images(self.test))
        furnish(self.run_config, data, self._partitions())

    def _images(self, arrays: Arrays) -> ImageData:
        with warnings.catch_warnings():
            # They are read-only, as is what they are used for.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            images, labels = map(torch.from_numpy, arrays)
        return ImageData(images, labels, *self.facts)

    def _partitions(self) -> Sequence[Examples] | None:
        if self.examples is None or self.ends is None:
            return None
        return np.split(self.examples, self.ends[:-1])


def _arrays(data: ImageData) -> Arrays:
    return data.images.numpy(), data.labels.numpy()
