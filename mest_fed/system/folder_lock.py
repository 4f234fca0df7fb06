"""A folder that one process at a time uses: the one of a run, or of its clients' states."""

import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from mest_fed.errors import InputError

#: What a file system without locks says.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
#: What a held folder has in it; the second stays, and says who held the folder last.
LOCK, OWNER = "lock", "owner"


class FolderLock:
    """Holds a folder for this process until :meth:`release`; the end of the process releases it.

    Where the file system has no locks, as some of the network, nothing is held.

    Parameters
    ----------
    folder : Path
        Must exist.

    Raises
    ------
    InputError
        If another run holds it; names the folder and, where known, the process.
    """

    def __init__(self, folder: Path) -> None:
        # The system drops the lock of a process that has died, so none is ever stale.
        self._lock = FileLock(folder / LOCK, thread_local=False)
        owner = folder / OWNER
        try:
            _acquire(self._lock)
        except Timeout:
            raise InputError(f"{folder} is in use by another run{_who(owner)}") from None
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    def release(self) -> None:
        """Release the folder's lock."""
        self._lock.release()


def is_held(folder: Path) -> bool:
    """Say whether a run holds a folder now."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        _acquire(lock)
    except Timeout:
        return True
    lock.release()
    return False


def _acquire(lock: FileLock) -> None:
    """Acquire a lock; do without one where the file system has none."""
    try:
        lock.acquire(timeout=0)
    except OSError as error:  # Timeout is one, too
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _who(owner: Path) -> str:
    try:
        text = owner.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({text})" if text else ""
