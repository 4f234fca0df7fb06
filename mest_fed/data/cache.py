"""Decoded data sets on disk, so that decoding is paid once and processes share the pages."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from mest_fed.errors import InputError


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
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    try:
        build(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
