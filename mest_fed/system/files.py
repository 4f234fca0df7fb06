"""Files that take their name only when they are whole.

Their modes follow the process's umask, but for those that are private.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mest_fed.errors import InputError, not_allowed


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
def writing(path: Path, option: str | None = None) -> Iterator[None]:
    """Say in one line that a file cannot be written.

    Parameters
    ----------
    path : Path
        The file.
    option : str, optional
        That names it.

    Raises
    ------
    InputError
        In place of an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if option is not None:
            allowed = f"a file that can be written ({why})"
            raise not_allowed(option, str(path), allowed) from None
        raise InputError(f"cannot write {path}: {why}") from None


def check_writable(path: Path, option: str) -> None:
    """Find that a file cannot be written before what takes long; leaves nothing.

    A file is made beside it and taken away: permissions alone do not tell, as of ``/proc``.

    Raises
    ------
    InputError
        If it cannot.
    """
    place = unfinished(path)
    with writing(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            place.touch()
        finally:
            place.unlink(missing_ok=True)


def try_folder(path: Path) -> None:
    """Find that a folder cannot be made or written in, before what takes long; leaves nothing.

    Raises
    ------
    OSError
        If it cannot.
    """
    path = path.absolute()
    nearest = next(each for each in (path, *path.parents) if each.exists())
    place = unfinished(nearest / "tried")
    try:
        place.mkdir()
        place.rmdir()
    except OSError as error:  # of the folder that was asked for
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_folder(path: Path, option: str) -> None:
    """Refuse a folder that :func:`try_folder` finds to be closed.

    Raises
    ------
    InputError
        If it is.
    """
    try:
        try_folder(path)
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror or error})"
        raise not_allowed(option, str(path), allowed) from None


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
