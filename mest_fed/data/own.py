"""A device's own labelled images, which are in no common data set."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from mest_fed.data.arrays import ArrayData, image_shape
from mest_fed.data.cifar10 import CHANNEL_MEAN, CHANNEL_STD, load_cifar10_split
from mest_fed.data.datasets import load_digits
from mest_fed.errors import InputError, not_allowed

#: How errors name what is wrong: as an option of ``mest-fed client`` and in the node config.
_KEY = "data (of this node)"


def load_own(name: str, path: str) -> ArrayData:
    """Load the examples that a device holds itself, in the shape of a run's data set.

    They are normalised by the constants of the run's data set, as all devices' are.

    Parameters
    ----------
    name : str
        The run's data set, which says shape and classes.
    path : str
        An ``.npz`` file with ``images`` (uint8, shape ``(n, channels, height, width)``) and
        ``labels`` (whole numbers, shape ``(n,)``); or, where the run's data set is ``cifar10``, a
        folder with ``train.parquet``.

    Raises
    ------
    InputError
        If there is nothing at the path, or it does not fit the run.
    """
    place = Path(path).expanduser()
    shape, classes = image_shape(name)
    if name == "cifar10" and (place / "train.parquet").is_file():
        return load_cifar10_split(place, "train")
    if not place.is_file():
        folder = ", or a folder with train.parquet" if name == "cifar10" else ""
        raise not_allowed(_KEY, path, f"an .npz file with images and labels{folder}")
    images, labels = _read(place)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        allowed = f"uint8, {_shape(shape)}, as data.name = {name!r} has them"
        raise _wrong(place, f"images are {images.dtype}, {_shape(images.shape[1:])}", allowed)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        given = f"labels are {labels.dtype}, shape {labels.shape}"
        raise _wrong(place, given, f"whole numbers, shape ({len(images)},)")
    if len(images) == 0:
        raise _wrong(place, "it has no images", "at least one")
    if labels.min() < 0 or labels.max() >= classes:
        given = f"labels go from {labels.min()} to {labels.max()}"
        raise _wrong(place, given, f"0 to {classes - 1}, the classes of data.name = {name!r}")
    shown = torch.from_numpy(np.ascontiguousarray(images))
    targets = torch.from_numpy(labels.astype(np.int64))
    return ArrayData(shown, targets, classes, *_statistics(name))


def _statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the (mean, standard deviation) of each channel that a data set is normalised by."""
    if name == "cifar10":
        return CHANNEL_MEAN, CHANNEL_STD
    common = load_digits().train
    return common.mean, common.std


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = f"it cannot be read ({type(error).__name__})"
        raise _wrong(file, reason, "an .npz file with images and labels") from error


def _wrong(file: Path, given: str, allowed: str) -> InputError:
    return InputError(f"{_KEY} = {str(file)!r}: {given}; allowed: {allowed}")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no shape"
