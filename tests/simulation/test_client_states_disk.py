"""The store on disk: sharing, locks, damage, full disks and killed processes."""

import signal
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import ArrayRecord
from state_cases import MASK, content, mask, records_in, state

from mest_fed.errors import InputError
from mest_fed.simulation.client_state import DiskStates
from mest_fed.simulation.client_state.shard import content_hash
from mest_fed.simulation.client_state.store import SHARDS, RecordCache


def run_script(text, *arguments):
    """Start Python code that knows the cases of these tests."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": f"{Path(__file__).parent}:."},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_equal_masks_are_stored_once_a_shard(tmp_path):
    with closing(DiskStates(tmp_path)) as states:
        for node in range(400):
            states.put(1000 + node, state(node, tier=node % 2))
        states.commit(1)
    counts = [sorted(uses.values()) for uses, _ in records_in(tmp_path)]
    assert counts == [[400 // SHARDS]] * SHARDS  # nodes of a shard are all of one tier here
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 400 * 4 * MASK / 5


def test_a_mask_that_no_client_holds_is_deleted(tmp_path):
    with closing(DiskStates(tmp_path)) as states:
        states.put(1000, state(1, tier=1))
        states.commit(1)
        states.put(1000, state(1, tier=2))
        states.put(1008, state(1, tier=3))
        states.put(1008, None)  # never committed
        states.commit(2)
        states.prune(2)
        states.commit(3)
    held = set().union(*(held for _, held in records_in(tmp_path)))
    assert held == {content_hash(mask(2))}


def test_hashes_differ_by_name_kind_and_data():
    array = mask(0)["conv"]
    other_name, other_data = ArrayRecord({"fc": array}), mask(1)
    reshaped = ArrayRecord({"conv": type(array)(array.numpy().reshape(2, -1))})
    assert len({content_hash(r) for r in (mask(0), other_name, other_data, reshaped)}) == 4
    assert content_hash(mask(0)) == content_hash(mask(0))


def test_the_cache_drops_what_was_used_longest_ago():
    size = mask(0).count_bytes()
    cache = RecordCache(2 * size)
    for key in "ab":
        cache.remember(key, mask(0))
    assert cache.get("a") is not None
    cache.remember("c", mask(0))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    small = RecordCache(size - 1)
    small.remember("a", mask(0))
    assert small.get("a") is None


def test_two_runs_cannot_share_a_store(tmp_path):
    script = """
        import os, sys
        from pathlib import Path
        from mest_fed.simulation.client_state import DiskStates
        states = DiskStates(Path(sys.argv[1]))
        print(os.getpid(), flush=True)
        sys.stdin.read()
    """
    other = run_script(script, tmp_path)
    pid = int(other.stdout.readline())
    with pytest.raises(InputError) as error:
        DiskStates(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} is in use by another run (process {pid} on ")
    assert "\n" not in str(error.value)
    other.kill()
    other.communicate()
    DiskStates(tmp_path).close()  # the dead process left its lock file, which blocks nobody


def test_one_process_cannot_open_a_store_twice(tmp_path):
    with closing(DiskStates(tmp_path)), pytest.raises(InputError, match="in use by another run"):
        DiskStates(tmp_path)
    DiskStates(tmp_path).close()


@pytest.mark.parametrize("when", ["between puts and commit", "within the commit"])
def test_a_killed_process_leaves_the_last_commit(tmp_path, when):
    script = """
        import os, signal, sys
        from pathlib import Path
        from mest_fed.simulation.client_state import DiskStates
        from mest_fed.simulation.client_state.shard import Shard
        from state_cases import state

        def kill():
            os.kill(os.getpid(), signal.SIGKILL)

        states = DiskStates(Path(sys.argv[1]))
        for node in range(1000, 1064):
            states.put(node, state(1, tier=0))
        states.commit(7)
        for node in range(1000, 1064):
            states.put(node, state(2, tier=node))
        if sys.argv[2] == "between puts and commit":
            kill()
        write, written = Shard.commit, []

        def commit(shard):
            if len(written) == 3:
                kill()
            written.append(shard)
            write(shard)

        Shard.commit = commit
        states.commit(8)
    """
    process = run_script(script, tmp_path, when)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    with closing(DiskStates(tmp_path)) as states:
        for node in range(1000, 1064):
            assert content(states.get(node)) == content(state(1, tier=0))
        states.rewind(7)
        with pytest.raises(InputError, match="found: 7 to 7"):
            states.rewind(8)
    assert all(held == {content_hash(mask(0))} for _, held in records_in(tmp_path))


def test_a_full_disk_costs_only_what_was_not_committed(tmp_path):
    script = """
        import resource, sys
        from pathlib import Path
        from mest_fed.errors import InputError
        from mest_fed.simulation.client_state import DiskStates
        from state_cases import state

        states = DiskStates(Path(sys.argv[1]))
        states.put(1000, state(1, tier=1))
        states.commit(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            for number in range(1000):
                states.put(1000 + number, state(2, tier=number))
            states.commit(2)
        except InputError as error:
            print(error)
        try:
            states.get(1000)
        except InputError as error:
            print(error)
        states.close()
    """
    process = run_script(script, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    first, second = output.splitlines()
    assert first == second
    assert f"clients' states in {tmp_path}: " in first
    assert first.endswith("what was committed before is kept")
    with closing(DiskStates(tmp_path)) as states:
        states.rewind(1)
        assert content(states.get(1000)) == content(state(1, tier=1))
        assert states.get(1001) is None


def test_damaged_and_missing_files(tmp_path):
    with closing(DiskStates(tmp_path)) as states:
        states.put(1000, state(1))
        states.commit(1)
    (tmp_path / "states-3.db").write_bytes(b"not a database, whatever it is called" * 100)
    with pytest.raises(InputError, match="file is not a database"):
        DiskStates(tmp_path)
    (tmp_path / "states-3.db").unlink()  # the failed attempt has let go of the folder
    with pytest.raises(InputError, match=r"states-3\.db is missing"):
        DiskStates(tmp_path)


def test_a_store_of_another_format(tmp_path, monkeypatch):
    monkeypatch.setattr("mest_fed.simulation.client_state.store._FORMAT", 3)
    DiskStates(tmp_path).close()
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 3; allowed: 2"):
        DiskStates(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="clients' states in"):
        DiskStates(tmp_path / "file" / "states")


def test_a_closed_store_says_so(tmp_path):
    states = DiskStates(tmp_path)
    states.close()
    with pytest.raises(InputError, match="the store is closed"):
        states.get(1000)
    states.close()
