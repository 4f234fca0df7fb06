"""The cache: folders of decoded data, each built by one process while others wait."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from mest_fed.errors import InputError
from mest_fed.system.files import unfinished


def cache_folder() -> Path:
    """Return the cache folder: ``$MEST_FED_CACHE``, or ``mest-fed`` in the user's cache.

    Raises
    ------
    InputError
        If neither the environment nor the system names a home folder.
    """
    if own := os.environ.get("MEST_FED_CACHE"):
        return Path(own)
    if user := os.environ.get("XDG_CACHE_HOME"):
        return Path(user) / "mest-fed"
    try:
        return Path.home() / ".cache" / "mest-fed"
    except RuntimeError:
        raise InputError(
            "MEST_FED_CACHE is not set, and this user has no home folder; allowed: a folder"
        ) from None


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """Return the cache's folder ``key``, built first if it is not there.

    Parameters
    ----------
    key : str
        A file name that stands for the content.
    build : callable
        Fills the empty folder that it gets. The folder takes its name only when this has
        succeeded, and one process builds while others wait.

    Raises
    ------
    InputError
        If the cache folder cannot be written.
    """
    folder = cache_folder() / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise InputError(
            f"MEST_FED_CACHE = {str(cache_folder())!r}: cannot write to it ({error})"
        ) from error
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    scratch = unfinished(folder)
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier process of this number
    scratch.mkdir()
    try:
        build(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def load_array(folder: Path, name: str, *, mapped: bool = True) -> npt.NDArray[Any]:
    """Read an array of a folder in the cache.

    Parameters
    ----------
    folder : Path
        As :func:`cached` returns it.
    name : str
        The array's file.
    mapped : bool
        Whether its pages stay in the file, which processes then share. They are copied when they
        are written, since torch wants memory that it could write.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        return np.asarray(np.load(folder / name, mmap_mode="c" if mapped else None))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} in the cache is damaged; delete it ({error})") from error


def content_digest(files: Sequence[Path]) -> str:
    """Return what the content of some files is called in the cache."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return whole.hex()[:32]


def listing_digest(folder: Path, files: Sequence[Path]) -> str:
    """Return what a folder of many files is called in the cache: by names, sizes and times."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for file in files:
        facts = file.stat()
        digest.update(f"{file.relative_to(folder)}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
