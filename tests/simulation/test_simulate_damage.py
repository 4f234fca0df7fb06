"""A damaged run folder: a resumed run gives the same bits, or is refused in one line."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
from tiny_run import Recorder, StopAfter, assert_same_run, start, tiny_config

from mest_fed.errors import InputError

#: Kinds of faults at length, each in a run of its own.
pytestmark = pytest.mark.soak

CONFIG = {
    "run": {"rounds": 3, "seed": 5, "checkpoint_every": 1},
    "model": {"width": 0.25, "norm": "batch"},
    "sparsity": {"method": "mest-em", "mutation": "client", "density": 0.2},
    "wire": {"upload": "int8"},
    "server": {"optimizer": "fedadam", "learning_rate": 0.05, "clients_per_round": 3},
    "fleet": {"devices": 4, "mix": "rpi-4:1"},
}
STATIC = ("config.toml", "kernels.json", "memory.json", "partitions.npz")
LOGS = ("rounds.jsonl", "clients.jsonl")
STATES = ("states/steps.db", *(f"states/states-{shard}.db" for shard in range(4)))


class Killed(BaseException):
    """The end of a process that has no time to write anything."""


class CopyAfter(Recorder):
    """Copies the folder after a round."""

    def __init__(self, number, folder, to):
        super().__init__()
        self.number, self.folder, self.to = number, folder, to

    def round_done(self, row):
        super().round_done(row)
        if row["round"] == self.number:
            shutil.copytree(self.folder, self.to)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a whole run, and the folder of one that was killed after two rounds."""
    place, config = tmp_path_factory.mktemp("runs"), tiny_config(**CONFIG)
    # Copied while it runs: its write-ahead logs are as a killed process leaves them.
    whole = start(place / "whole", config, display=CopyAfter(2, place / "whole", place / "killed"))
    return whole, place / "killed"


@pytest.fixture
def folder(runs, tmp_path):
    return shutil.copytree(runs[1], tmp_path / "run")


def contents(folder):
    """Return the bytes of all files but the store's, whose book-keeping changes as it is opened."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in files if path.parent.name != "states"}


def refused(folder, match):
    """Check that a folder is refused in one line, and left as it is."""
    before = contents(folder)
    with pytest.raises(InputError, match=match) as caught:
        start(folder, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


def goes_on_or_refused(folder, whole):
    """Resume; return whether it was refused. What goes on must end as the whole run."""
    before = contents(folder)
    try:
        start(folder, resume=True)
    except InputError as error:
        reason = str(error)
    else:
        assert_same_run(folder, whole)
        return False
    assert "\n" not in reason
    assert contents(folder) == before
    return True


def flip(path, at):
    """Flip a bit at a share of a file's length."""
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(at * len(data)))] ^= 0x10
    path.write_bytes(data)


def damage(path, how):
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        flip(path, float(how))


@pytest.mark.soak
def test_the_folder_as_it_was_left_goes_on(folder, runs):
    assert not goes_on_or_refused(folder, runs[0])


@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated", "0.4", "0.9"])
@pytest.mark.parametrize("name", STATIC + LOGS)
def test_a_damaged_file_is_named(folder, name, how):
    damage(folder / name, how)
    refused(folder, name.replace(".", r"\."))


@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated", "0.001", "0.5", "0.97"])
@pytest.mark.parametrize("name", STATES)
def test_damaged_states_are_refused_or_have_no_effect(folder, runs, name, how):
    path = folder / name
    for database in folder.glob("states/*.db"):
        merge_log(database)  # so that the file alone holds everything
    damage(path, how)
    if goes_on_or_refused(folder, runs[0]):
        return
    assert how.startswith("0.")  # a bit of a page that nothing uses


@pytest.mark.parametrize("shard", range(4))
def test_a_write_ahead_log_that_is_gone(folder, shard):
    log = folder / f"states/states-{shard}.db-wal"
    assert log.stat().st_size > 0
    log.unlink()
    refused(folder, rf"states-{shard}\.db is damaged")


@pytest.mark.soak
def test_states_of_another_round_or_run_and_states_that_change_places(folder, tmp_path):
    shards = [folder / f"states/states-{shard}.db" for shard in range(4)]
    for database in shards:
        merge_log(database)
    kept = [path.read_bytes() for path in shards]
    shards[0].write_bytes(kept[1])
    shards[1].write_bytes(kept[0])
    refused(folder, r"states-0\.db is damaged: the clients' states in it are not those of the ch")
    other = tiny_config(**(CONFIG | {"run": CONFIG["run"] | {"seed": 6}}))
    with pytest.raises(Killed):
        start(tmp_path / "other", other, display=StopAfter(2, Killed))
    merge_log(tmp_path / "other/states/states-0.db")
    shutil.copy(tmp_path / "other/states/states-0.db", shards[0])
    shards[1].write_bytes(kept[1])
    refused(folder, r"states-0\.db is damaged")
    shards[0].write_bytes(kept[0])  # the folder lost nothing by being refused
    start(folder, resume=True)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM state WHERE until IS NULL",
        "UPDATE state SET own = x'00' WHERE until IS NULL",
        "UPDATE state SET since = since - 1",
        "UPDATE state SET until = 2 WHERE until IS NULL",
        "UPDATE state SET digest = x'00'",
        "UPDATE record SET data = x'00'",
        "DELETE FROM record",
        "UPDATE uses SET count = count + 1",
    ],
)
def test_rows_that_are_not_those_of_the_run(folder, statement):
    with sqlite3.connect(folder / "states/states-0.db") as database:
        assert database.execute(statement).rowcount > 0
    database.close()
    refused(folder, r"states-0\.db is damaged")


@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated", "0.3", "0.6", "0.95"])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(folder, runs, how):
    newest = max((folder / "checkpoints").iterdir())
    assert newest.name == "round-000002.npz"
    damage(newest, how)
    assert not goes_on_or_refused(folder, runs[0])


def edit_checkpoint(folder, change):
    """Change the arrays and facts of the newest checkpoint, as a whole file."""
    path = max((folder / "checkpoints").iterdir())
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(arrays.pop("header").tobytes())
    change(arrays, facts)
    header = json.dumps(facts | {"arrays": sorted(arrays)}).encode()
    np.savez(path, header=np.frombuffer(header, np.uint8), **arrays)


SERVER = ("round", "known", "kept", "moments")
FACTS = (*SERVER, "busy", "wall_seconds", "preset", "plans", "seal", "states")


@pytest.mark.parametrize("name", FACTS)
def test_a_checkpoint_without_a_field(folder, name):
    edit_checkpoint(folder, lambda _, facts: facts.pop(name))
    refused(folder, f"the checkpoint is not of this run: it has no '{name}'")


@pytest.mark.parametrize("value", ["x", -1, None, [1], 1e999])
@pytest.mark.parametrize("name", ["round", "known", "busy", "plans", "seal", "states"])
def test_a_field_of_another_kind(folder, name, value):
    edit_checkpoint(folder, lambda _, facts: facts.update({name: value}))
    refused(folder, "the checkpoint is not of this run: ")


@pytest.mark.parametrize("section", ["weights", "dense", "moments", "masks", "tier", "clock"])
def test_a_checkpoint_without_an_array(folder, section):
    def change(arrays, _):
        del arrays[next(key for key in arrays if key.startswith(section))]

    edit_checkpoint(folder, change)
    refused(folder, "the checkpoint is not of this run: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights|", np.nan),
        ("dense|", np.inf),
        ("moments:first|", np.nan),
        ("clock|now", np.nan),
        ("dense|norm1.running_var", -1),
        ("masks|", -1),
        ("masks|", 2**30),
        ("tier:", 0),
        ("masks-of:", 7),
        ("grown|", 2**30),
    ],
)
def test_an_array_with_an_impossible_number(folder, key, value):
    def change(arrays, _):
        name = next(n for n in arrays if n.startswith(key) and arrays[n].size != 0)
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[-1] = value

    edit_checkpoint(folder, change)
    refused(folder, "the checkpoint is not of this run: ")


@pytest.mark.parametrize("row", ['{"accuracy": 1}', "3", '{"round": "1"}', '{"round": true}', "[]"])
@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_row_that_is_none(folder, name, row, place):
    text = (folder / name).read_text(encoding="utf-8")
    text = f"{row}\n{text}" if place == "first" else f"{text}{row}\n"
    (folder / name).write_text(text, encoding="utf-8")
    refused(folder, name.replace(".", r"\."))


def merge_log(database):
    """Write a database's write-ahead log into it."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
