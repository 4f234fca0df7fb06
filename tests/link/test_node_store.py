"""What a node keeps survives a loss of power at any moment, and goes back with its server."""

import errno
import fcntl
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mest_fed.errors import InputError
from mest_fed.link.node.store import (
    BEFORE,
    STATE,
    NodeFolder,
    Reply,
    StateStore,
    attempts_at,
    run_key,
)
from mest_fed.link.node.worker import NodeState
from mest_fed.training.forgetting import ForgettingState
from mest_fed.wire import Residual


def state(number):
    masks = {"body": np.arange(number, number + 3, dtype=np.int32)}
    residual = Residual(masks, {"body.0": np.full((3, 2), number, np.float32)})
    return NodeState(masks, ForgettingState(np.full(5, number, np.uint8)), residual)


def reply(number):
    return Reply(f"task-{number}", {"header": b"h", "values": bytes([number])}, {"loss": 0.5})


def number_of(kept):
    """Return the round that a kept state is of, and check that all its parts are."""
    if kept.round == 0:
        assert kept.state.masks == {}
        return 0
    assert kept.state.masks["body"].tolist() == list(range(kept.round, kept.round + 3))
    assert set(kept.state.forgetting.codes) == {kept.round}
    assert set(kept.state.residual.values["body.0"].flat) == {kept.round}
    return kept.round


@pytest.fixture
def folder(tmp_path):
    return NodeFolder(tmp_path / "state")


def trained(folder, *rounds, start="first", begun=0):
    store = StateStore(folder, "run")
    store.go_on_from(start, begun)
    for number in rounds:
        store.save(state(number), number, reply(number))
    return store


def test_a_state_comes_back_with_its_reply(folder):
    trained(folder, 1, 2)
    kept = StateStore(folder, "run").kept
    assert number_of(kept) == 2
    assert kept.start == "first"
    assert kept.reply == reply(2)


def test_the_state_of_another_run_is_forgotten(folder):
    trained(folder, 1)
    another = StateStore(folder, "another")
    assert another.kept.round == 0
    assert another.of_another
    assert not StateStore(folder, "run").of_another


def test_a_plan_that_changes_leaves_the_run_the_same():
    assert run_key('{"seed": 1, "micro_batch": 4}') == run_key('{"micro_batch": 8, "seed": 1}')
    assert run_key('{"seed": 1}') != run_key('{"seed": 2}')


@pytest.mark.parametrize(
    ("rounds", "begun", "back_to"),
    [((1, 2, 3), 2, 2), ((1, 2, 3), 3, 3), ((1, 2, 3), 1, 0), ((1, 3), 2, 1), ((1, 2), 0, 0)],
)
def test_a_node_goes_back_before_what_its_server_repeats(folder, rounds, begun, back_to):
    trained(folder, *rounds)
    store = StateStore(folder, "run")
    went = store.go_on_from("second", begun)
    assert (went is not None) == (back_to != rounds[-1])
    assert number_of(store.kept) == back_to
    assert store.go_on_from("second", begun) is None
    # it may be killed before it trains, and be told again
    again = StateStore(folder, "run")
    again.go_on_from("second", begun)
    assert number_of(again.kept) == back_to
    again.save(state(back_to + 5), back_to + 5, reply(1))
    # and the void state never becomes the one before
    last = StateStore(folder, "run")
    last.go_on_from("third", back_to + 4)
    assert number_of(last.kept) in (back_to, 0)


def test_a_second_training_in_one_round_keeps_the_state_before_the_round(folder):
    trained(folder, 1, 2, 2)
    store = StateStore(folder, "run")
    store.go_on_from("second", 1)
    assert number_of(store.kept) == 1


@pytest.mark.parametrize("name", ["fsync", "link", "replace"])
@pytest.mark.parametrize("nth", range(6))
def test_a_write_that_is_cut_leaves_the_old_state_or_the_new(folder, monkeypatch, name, nth):
    store = trained(folder, 1)
    whole, calls = getattr(os, name), []

    def cut(*arguments, **options):
        calls.append(1)
        if len(calls) == nth + 1:
            raise KeyboardInterrupt  # nothing more of this process happens
        return whole(*arguments, **options)

    monkeypatch.setattr(os, name, cut)
    died = False
    try:
        store.save(state(2), 2, reply(2))
    except KeyboardInterrupt:
        died = True
    monkeypatch.undo()
    kept = StateStore(folder, "run").kept
    assert number_of(kept) in ((1, 2) if died else (2,))
    assert kept.reply == reply(kept.round)
    trained(folder, 3)
    assert number_of(StateStore(folder, "run").kept) == 3


def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_state(folder, monkeypatch):
    store = trained(folder, 1)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left") as raised:
        store.save(state(2), 2, reply(2))
    assert "\n" not in str(raised.value)
    assert number_of(StateStore(folder, "run").kept) == 1


def test_what_was_left_beside_its_place_is_written_over(folder):
    (folder.path / f"{STATE}.new").write_bytes(b"cut")
    (folder.path / f"{BEFORE}.new").write_bytes(b"cut")
    trained(folder, 1, 2)
    assert number_of(StateStore(folder, "run").kept) == 2


def test_a_key_is_its_owners_alone(folder):
    os.chmod(folder.path, 0o700)
    folder.write("node.key", b"key", secret=True)
    folder.write("node.key", b"another", secret=True)
    assert (folder.path / "node.key").stat().st_mode & 0o777 == 0o600
    assert (folder.path).stat().st_mode & 0o777 == 0o700


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = NodeFolder(tmp_path_factory.mktemp("whole"))
    trained(folder, 1)
    return (folder.path / STATE).read_bytes()


@given(cut=st.booleans(), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_one_line_or_whole(folder, whole, cut, at, bit):
    data = bytearray(whole)
    place = int(at * len(data))
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    (folder.path / STATE).write_bytes(data)
    problem = ""
    try:
        kept = StateStore(folder, "run").kept
    except InputError as error:
        problem = str(error)
    if problem:
        assert "\n" not in problem
        assert "remove it to begin anew" in problem
    else:  # what no digest covers, such as a date
        assert not cut
        number_of(kept)


def test_attempts_are_counted_by_instruction(folder):
    assert [attempts_at(folder, name) for name in ("a", "a", "b", "b", "b")] == [1, 2, 1, 2, 3]
    (folder.path / "attempts.json").write_bytes(b'{"instruction": "b", "times": "x"}')
    assert attempts_at(folder, "b") == 1
    (folder.path / "attempts.json").write_bytes(b"{")
    assert attempts_at(folder, "b") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--state: .* cannot be made"):
        NodeFolder(tmp_path / "file" / "state")


def test_a_folder_on_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    opened = len(os.listdir("/proc/self/fd"))
    folder = NodeFolder(tmp_path)
    folder.claim()
    folder.write("file", b"data")
    assert folder.read("file") == b"data"
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_run_with_more_rounds_is_the_same_run_and_one_with_another_seed_is_not():
    key = run_key('{"rounds": 3, "seed": 1, "micro_batch": 4}')
    assert run_key('{"rounds": 5, "seed": 1, "micro_batch": 2}') == key
    assert run_key('{"rounds": 3, "seed": 2, "micro_batch": 4}') != key


def test_a_file_that_is_no_archive_brings_no_advice_to_load_it_unsafely(folder):
    trained(folder, 1)
    (folder.path / STATE).write_bytes(b"no archive at all")
    with pytest.raises(InputError, match="is damaged") as raised:
        StateStore(folder, "run")
    assert "pickle" not in str(raised.value)
