"""Files that take their name only when they are whole.

Their modes follow the process's umask, but for those that are private.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mest_fed.errors import InputError


def unfinished(path: Path) -> Path:
    """Return what a file or folder is called until it is whole: hidden, beside it.

    Names of :mod:`tempfile` will not do: what it makes is the user's alone, whatever the umask.
    """
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextmanager
def whole_file(path: Path, *, synced: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name at the end of the block; it may replace another.

    If the block raises, nothing is left of it.

    Parameters
    ----------
    path : Path
        The file.
    synced : bool
        Whether content and name are on the disk when the block has ended.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    place = unfinished(path)
    try:
        with place.open("wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    if synced:
        _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line that a file cannot be written.

    Raises
    ------
    InputError
        In place of an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file, which may replace another.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with writing(path), whole_file(path) as file:
        file.write(content)


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole file or none of it; a private one is the owner's alone from the beginning.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have a new name on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
