"""Labelled images in memory, and a data set's two splits."""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mest_fed.errors import InputError, not_allowed

#: Positions of images in a data set, or of examples among a client's own.
Indices = npt.NDArray[np.int64]
#: Images that are read at a time only to have their pages mapped.
_TOUCHED = 64


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Labelled images.

    Parameters
    ----------
    inputs : Tensor
        uint8, shape ``(n, channels, height, width)``. They may be pages of a file that processes
        share: read them only.
    targets : Tensor
        int64, shape ``(n,)``, in ``range(num_classes)``.
    num_classes : int
        Number of classes.
    mean, std : tuple of float
        Of each channel of ``inputs / 255``, over the training split.
    """

    inputs: Tensor
    targets: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def touch(self, examples: Indices) -> None:
        """Read images once, so that their pages are there where they are pages of a file."""
        for start in range(0, len(examples), _TOUCHED):
            self.inputs[torch.from_numpy(examples[start : start + _TOUCHED])]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        _, channels, height, width = self.inputs.shape
        return channels, height, width


@dataclass(frozen=True, eq=False)
class DataSplit:
    """A data set: what the clients share out among them, and the central test set."""

    train: ArrayData
    test: ArrayData


ImageShape = tuple[int, int, int]

_SHAPES: dict[str, tuple[ImageShape, int]] = {
    "digits": ((1, 8, 8), 10),
    "cifar10": ((3, 32, 32), 10),
}


def image_shape(name: str) -> tuple[ImageShape, int]:
    """Return a data set's (channels, height, width) and number of classes.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    if name not in _SHAPES:
        raise not_allowed("data.name", name, _SHAPES)
    return _SHAPES[name]


def require(module: str, *, extra: str) -> Any:
    """Import a module of an optional library, as late as possible.

    Raises
    ------
    InputError
        If the library is not installed; the text says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install it with: pip install 'mest-fed[{extra}]'"
        ) from error
