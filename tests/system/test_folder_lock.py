"""A folder's lock where the file system has none: nothing is held, and nothing fails."""

import errno
import fcntl

import pytest

from mest_fed.errors import InputError
from mest_fed.system.folder_lock import FolderLock, is_held


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    held = FolderLock(tmp_path)
    with pytest.raises(InputError, match="in use by another run"):
        FolderLock(tmp_path)

    def without(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", without)
    lock = FolderLock(tmp_path)
    assert not is_held(tmp_path)
    lock.release()
    monkeypatch.undo()
    assert is_held(tmp_path)
    held.release()
    assert not is_held(tmp_path)
