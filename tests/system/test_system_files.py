"""Files that take their name only when they are whole."""

from pathlib import Path

import pytest

from mest_fed.errors import InputError
from mest_fed.system.files import check_folder, check_writable, whole_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.bin"
    with whole_file(path, synced=True) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"second", None])
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file.bin"]


def test_a_file_that_cannot_be_written_is_found_before_and_nothing_is_left(tmp_path):
    check_writable(tmp_path / "new.bin", "--out")
    there = tmp_path / "there.bin"
    there.write_bytes(b"kept")
    check_writable(there, "--out")
    assert there.read_bytes() == b"kept"
    for path, why in (
        (tmp_path, "Is a directory"),
        (there / "x.bin", "Not a directory"),
        (Path("/proc/x.bin"), ""),  # whose permissions allow root to write
    ):
        with pytest.raises(InputError, match=r"^--out = .* can be written") as caught:
            check_writable(path, "--out")
        assert why in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["there.bin"]


def test_a_folder_that_cannot_be_written_is_found_before_and_nothing_is_left(tmp_path):
    check_folder(tmp_path, "--out")
    check_folder(tmp_path / "new" / "deeper", "--out")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(InputError, match=r"^--out = .* a folder that can be written"):
            check_folder(path, "--out")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
