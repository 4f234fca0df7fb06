"""A folder for one run: whether a new run may have it, and that no other takes it meanwhile."""

import shutil
from contextlib import suppress
from pathlib import Path

from mest_fed.server.folder_names import (
    CHECKPOINTS,
    CLIENTS,
    CONFIG,
    KERNELS,
    LABELS,
    LOG,
    MEMORY,
    PARTITIONS,
    PROVENANCE,
    ROUNDS,
    STATES,
)
from mest_fed.system.folder_lock import LOCK, OWNER, FolderLock, is_held

#: All that a run leaves that came to no checkpoint.
_EARLY = {CONFIG, KERNELS, MEMORY, LOG, PARTITIONS, PROVENANCE, LABELS}
_EARLY |= {ROUNDS, CLIENTS, CHECKPOINTS, STATES}


class Claim:
    """A run's hold on its folder.

    Parameters
    ----------
    path : Path
        The folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []
        self._lock: FolderLock | None = None

    @property
    def holds_checkpoint(self) -> bool:
        """Whether a run in it got as far as its first checkpoint."""
        return (self.path / CHECKPOINTS).is_dir() and any((self.path / CHECKPOINTS).iterdir())

    def is_new(self) -> bool:
        """Whether a new run may have the folder: nothing is in it that anyone would miss.

        So is a folder that a run has begun, and left before any client had a result: it names its
        owner, and holds nothing that is not of a run.

        Raises
        ------
        OSError
            If it is no folder, or cannot be read.
        """
        if not self.path.exists():
            return True
        names = {path.name for path in self.path.iterdir()} - {LOCK}
        return not names or (
            OWNER in names
            and names <= _EARLY | {OWNER}
            and not self.holds_checkpoint
            and _size(self.path / CLIENTS) == 0
        )

    @property
    def is_held(self) -> bool:
        """Whether a run holds the folder now."""
        return is_held(self.path)

    def take(self) -> None:
        """Make the folder, if it is missing, and hold it until :meth:`release`.

        Raises
        ------
        InputError
            If another run holds it.
        OSError
            If it cannot be written.
        """
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self.hold()

    def hold(self) -> None:
        """Hold a folder that exists until :meth:`release`; the exceptions are :meth:`take`'s."""
        self._lock = FolderLock(self.path)

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def clear(self) -> None:
        """Remove what an earlier run left that came to nothing; see :meth:`is_new`."""
        for path in self.path.iterdir():
            if path.name in _EARLY:
                _remove(path)

    def discard(self) -> None:
        """Remove what the run left, and the folder and its new parents if nothing else is there."""
        with suppress(OSError):
            for path in self.path.iterdir():
                if path.name in _EARLY | {LOCK, OWNER}:
                    _remove(path)
        for folder in self._made:
            with suppress(OSError):  # not empty: files of others
                folder.rmdir()
        self.release()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
