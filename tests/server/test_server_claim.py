"""A folder has one run at a time, and a run that came to nothing does not keep it."""

import pytest

from mest_fed.errors import InputError
from mest_fed.server.claim import Claim
from mest_fed.server.folder_names import CLIENTS, CONFIG, LOG, MEMORY, PARTITIONS, SUMMARY
from mest_fed.server.run_folder import RunFolder


@pytest.fixture
def begun(tmp_path):
    """Return a folder whose run was killed in its first seconds."""
    folder = RunFolder(tmp_path / "run")
    folder.check_new()
    folder.begin("seed = 1\n")
    (folder.path / LOG).write_text("a line")
    (folder.path / MEMORY).write_text('{"plan": 1}')
    (folder.path / PARTITIONS).write_bytes(b"PK")
    (folder.path / CLIENTS).touch()
    folder.release()
    return folder.path


def test_a_run_that_came_to_nothing_gives_way(begun):
    folder = RunFolder(begun)
    folder.check_new()
    # What it left is not of the run that begins.
    assert (folder.partition_file, folder.read_memory()) == ("", None)
    folder.begin("seed = 2\n")
    assert (begun / CONFIG).read_text() == "seed = 2\n"
    assert not (begun / LOG).exists()
    assert not (begun / PARTITIONS).exists()
    folder.release()


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", "mine"), (CLIENTS, '{"round": 1}\n'), (SUMMARY, "{}"), ("model.pt", "")],
)
def test_what_anyone_would_miss_stays(begun, name, content):
    (begun / name).write_text(content)
    before = {path: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(begun).check_new()
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


def test_a_checkpoint_stays(begun):
    (begun / "checkpoints").mkdir()
    assert Claim(begun).is_new()
    (begun / "checkpoints" / "round-000000.npz").touch()
    assert not Claim(begun).is_new()


def test_a_user_s_own_configuration_stays(tmp_path):
    (tmp_path / CONFIG).write_text("[run]\n")  # no run says that it is its own
    with pytest.raises(InputError, match="is not empty"):
        RunFolder(tmp_path).check_new()


def test_a_run_that_has_just_begun_keeps_its_folder(begun):
    first, second = RunFolder(begun), RunFolder(begun)
    first.check_new()
    second.check_new()
    first.begin("seed = 3\n")
    assert Claim(begun).is_held
    with pytest.raises(InputError, match=r"run is in use by another run \(process \d+ on "):
        second.begin("seed = 4\n")
    assert (begun / CONFIG).read_text() == "seed = 3\n"
    first.release()
    assert not Claim(begun).is_held


def test_bytes_that_are_no_text_name_no_owner(begun):
    first = RunFolder(begun)
    first.hold()
    (begun / "owner").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is in use by another run"):
        RunFolder(begun).hold()
    first.release()


def test_what_is_discarded_leaves_nothing(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.begin("")
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_is_discarded_leaves_what_others_put_there(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin("[run]\n")
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    folder.discard()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
