"""Checkpoints: a strategy comes back whole, a file is whole or refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import StubGrid, capability, random_state, reply_with, strategy_of, train_messages

from mest_fed.errors import InputError
from mest_fed.server.checkpoint import (
    checkpoint_name,
    load_checkpoint,
    load_newest,
    restore_strategy,
    save_checkpoint,
    strategy_arrays,
)

NODES = {11: 0.2, 12: 0.2, 13: 0.05, 14: 0.025}
CONFIGS = [
    {"sparsity": {"method": "mest-ems", "period": 0.125}, "server": {"optimizer": "fedadam"}},
    {"sparsity": {"method": "mest-em", "mutation": "client", "period": 0.125, "scheme": "channel"}},
    {"sparsity": {"scheme": "pattern"}, "server": {"optimizer": "fedavgm"}},
    {"sparsity": {"method": "dense"}, "server": {"optimizer": "fedavgm"}},
]


def grid():
    return StubGrid({n: capability(p, d) for p, (n, d) in enumerate(NODES.items())})


def play(strategy, fleet, number):
    """Play a round in which every client answers with random values."""
    messages = train_messages(strategy, fleet, number)
    replies = []
    for node_id, message in messages.items():
        masks = strategy.broadcast.tiers[strategy.clients.nodes[node_id].density]
        state = random_state(
            strategy.model.spec, seed=100 * strategy.record.round + node_id, masks=masks
        )
        examples = strategy.clients.nodes[node_id].examples
        replies.append(reply_with(message, state, strategy.model.spec, examples, known=masks))
    strategy.aggregate_train(number, replies)
    return [message.content for message in messages.values()]


def played(config, rounds):
    fleet, strategy = grid(), strategy_of(**config)
    if config["sparsity"].get("method") == "dense":
        fleet.capabilities = {n: capability(p, 1.0) for p, n in enumerate(NODES)}
    for number in range(1, rounds + 1):
        play(strategy, fleet, number)
    return strategy, fleet


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key, array in left.items():
        np.testing.assert_array_equal(array, right[key])


def assert_same(strategy, other):
    (arrays, facts), (others, other_facts) = strategy_arrays(strategy), strategy_arrays(other)
    assert facts == other_facts
    assert_equal(arrays, others)


@pytest.mark.parametrize("config", CONFIGS, ids=["ems", "client", "pattern", "dense"])
def test_a_restored_strategy_goes_on_as_if_nothing_had_happened(config, tmp_path):
    strategy, fleet = played(config, 3)
    path = tmp_path / "checkpoints" / checkpoint_name(3)
    save_checkpoint(path, *strategy_arrays(strategy))
    other = strategy_of(**config)
    restore_strategy(other, *load_checkpoint(path))
    assert_same(strategy, other)
    assert (other.first_round, other.record.round) == (3, 3)
    assert other.record.density == strategy.record.density
    for number in (4, 5):
        assert play(strategy, fleet, number) == play(other, fleet, number - 3)
    assert_same(strategy, other)


def test_a_strategy_that_never_played(tmp_path):
    strategy, _ = played(CONFIGS[0], 0)
    save_checkpoint(tmp_path / "c.npz", *strategy_arrays(strategy))
    other = strategy_of(**CONFIGS[0])
    restore_strategy(other, *load_checkpoint(tmp_path / "c.npz"))
    assert_same(strategy, other)
    assert other.first_round == 0


def test_taking_the_arrays_copies_nothing_and_later_rounds_leave_them_alone():
    strategy, fleet = played(CONFIGS[0], 2)
    arrays, facts = strategy_arrays(strategy)
    copies = {key: array.copy() for key, array in arrays.items()}
    remembered = json.dumps(facts)
    for number in (3, 4):
        play(strategy, fleet, number)
    assert_equal(arrays, copies)
    assert json.dumps(facts) == remembered


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"x": np.arange(3)}, {"round": 1})

    def fail(file, **arrays):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(InputError, match="disk full; the last one that was written is whole"):
        save_checkpoint(path, {"x": np.arange(4)}, {"round": 2})
    arrays, facts = load_checkpoint(path)
    assert (len(arrays["x"]), facts["round"]) == (3, 1)
    assert list(tmp_path.iterdir()) == [path]


def saved(tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"x": np.arange(30, dtype=np.float32)}, {"round": 1, "known": {}})
    return path


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(100), b"\x80\x04."],
)
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_checkpoint(path)


def test_a_single_array_is_no_checkpoint(tmp_path):
    with (tmp_path / "c.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "c.npz")


@pytest.mark.parametrize("header", [b"{}", b"[]", b"7", b"{", b"\xff"])
def test_a_wrong_header(tmp_path, header):
    with (tmp_path / "c.npz").open("wb") as file:
        np.savez(file, header=np.frombuffer(header, np.uint8))
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "c.npz")


def test_another_format(tmp_path):
    save_checkpoint(tmp_path / "c.npz", {}, {"format": 9})
    with pytest.raises(InputError, match="has format 9; allowed: 2"):
        load_checkpoint(tmp_path / "c.npz")


def test_pickled_objects_are_never_read(tmp_path):
    with (tmp_path / "c.npz").open("wb") as file:
        np.savez(file, header=np.frombuffer(b'{"format": 2}', np.uint8), x=np.array([{"a": 1}]))
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "c.npz")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_right(tmp_path_factory, data):
    path = saved(tmp_path_factory.mktemp("damaged"))
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    else:
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    path.write_bytes(damaged)
    try:
        arrays, facts = load_checkpoint(path)
    except InputError:
        return
    assert arrays["x"].tolist() == list(range(30))
    assert facts == {"format": 2, "round": 1, "known": {}}


def other_model(arrays, facts):
    other, _ = played({"sparsity": {}, "model": {"width": 0.5}}, 1)
    arrays.update(strategy_arrays(other)[0])


def without_dense(arrays, facts):
    for key in [key for key in arrays if key.startswith("dense|")]:
        del arrays[key]


def without_a_layer(arrays, facts):
    del arrays[next(key for key in arrays if key.startswith("weights|"))]


def with_a_stranger(arrays, facts):
    arrays["weights|stranger"] = np.zeros(4, np.float32)


def with_a_slot_out_of_range(arrays, facts):
    key = next(key for key in arrays if key.startswith("masks|"))
    arrays[key] = np.append(arrays[key], np.int32(10**9)).astype(np.int32)


def with_a_inactive_tier(arrays, facts):
    key = next(key for key in arrays if key.startswith("tier:"))
    arrays[key] = np.zeros(0, np.int32)


def with_text(arrays, facts):
    arrays[next(key for key in arrays if key.startswith("dense|"))] = np.array("text")


def without_known(arrays, facts):
    del facts["known"]


def with_wrong_known(arrays, facts):
    facts["known"] = {"eleven": "00"}


def without_round(arrays, facts):
    del facts["round"]


@pytest.mark.parametrize(
    "change",
    [
        other_model,
        without_dense,
        without_a_layer,
        with_a_stranger,
        with_a_slot_out_of_range,
        with_a_inactive_tier,
        with_text,
        without_known,
        with_wrong_known,
        without_round,
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change):
    strategy, _ = played({"sparsity": {}}, 1)
    arrays, facts = strategy_arrays(strategy)
    change(arrays, facts)
    fresh = strategy_of(sparsity={})
    before, _ = strategy_arrays(fresh)
    with pytest.raises(InputError, match="the checkpoint is not of this run"):
        restore_strategy(fresh, arrays, facts)
    assert_equal(strategy_arrays(fresh)[0], before)


def test_the_newest_checkpoint_that_is_whole(tmp_path, caplog):
    with pytest.raises(InputError, match="no checkpoint in"):
        load_newest(tmp_path)
    for number in (9, 10, 1000):
        save_checkpoint(tmp_path / checkpoint_name(number), {}, {"round": number})
    assert load_newest(tmp_path)[1]["round"] == 1000
    newest = tmp_path / checkpoint_name(1000)
    newest.write_bytes(newest.read_bytes()[:-7])
    assert load_newest(tmp_path)[1]["round"] == 10
    assert "round-001000.npz is not a whole checkpoint" in caplog.text
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"round-000009\.npz is not a whole checkpoint"):
        load_newest(tmp_path)
