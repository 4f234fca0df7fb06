"""Partitions on disk, so that a device knows its examples without any partitioner."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mest_fed.data.images import Indices
from mest_fed.errors import InputError


def save_partitions(path: str | Path, parts: Sequence[Indices]) -> None:
    """Write partitions to an ``.npz`` file: all indices one after another, and the sizes.

    The file takes its name only when it is complete.

    Raises
    ------
    InputError
        If it cannot be written, because the disk is full for example.
    """
    try:
        _save(Path(path), parts)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def _save(target: Path, parts: Sequence[Indices]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, indices=np.concatenate(parts).astype(np.int64), sizes=sizes)
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


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
        raise _wrong(path, f"has index {indices.max()}, but there are {num_examples} examples")
    return np.split(indices, np.cumsum(sizes)[:-1])


def _wrong(path: str | Path, reason: str) -> InputError:
    return InputError(f"data.partition_file = {str(path)!r} {reason}")
