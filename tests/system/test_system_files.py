"""Files that take their name only when they are whole."""

import pytest

from mest_fed.system.files import whole_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.bin"
    with whole_file(path, synced=True) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"second", None])
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file.bin"]
