"""Processor time of a node's messages: that of ended processes counts, rounds are taken off."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager

import node_messages
import psutil
import pytest

from mest_fed.errors import InputError

#: Works for .3 s in a child, which is waited for or not, and then is idle.
PARENT = """
import subprocess, sys, time
busy = "import time\\nwhile time.process_time() < .3: pass"
child = subprocess.Popen([sys.executable, "-c", busy])
{wait}
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("wait", ["child.wait()", "time.sleep(0)"])
def test_the_time_of_ended_processes_counts(wait):
    command = [sys.executable, "-c", PARENT.format(wait=wait)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            root = psutil.Process(parent.pid)
            end = time.monotonic() + 20
            while any(it.status() != "zombie" for it in root.children()):
                assert time.monotonic() < end
                time.sleep(0.01)
            times = root.cpu_times()
            own = times.user + times.system
            assert 0.28 <= node_messages.tree_seconds(root) - own < 2
        finally:
            parent.kill()


def test_what_is_seen_of_a_process_is_a_lower_bound():
    seen = node_messages.LiveTime(psutil.Process())
    seen.look()
    first = seen.total
    seen.look()
    assert 0 < first <= seen.total <= node_messages.tree_seconds(psutil.Process())


@contextmanager
def no_node(folder, place):
    assert (folder / "own.npz").is_file()
    assert place == ["--data", str(folder / "own.npz")]
    yield None


def test_a_message_is_the_difference_of_two_runs(monkeypatch, tmp_path):
    asked = []

    def seconds_of_run(_, rounds):
        asked.append(rounds)
        return 11.0 + 6.5 * rounds, 20.0 + 8.0 * rounds

    monkeypatch.setattr(node_messages, "running_node", no_node)
    monkeypatch.setattr(node_messages, "seconds_of_run", seconds_of_run)
    monkeypatch.setattr(node_messages, "core_speed", lambda _: 0.9)
    node_messages.main(["--json", str(tmp_path / "rows.json")])
    written = json.loads((tmp_path / "rows.json").read_text())
    assert asked == [1, 6, 6, 1, 1, 6]
    assert [row["message_seconds"] for row in written["rows"]] == [6.5] * 3
    assert [row["message_wall_seconds"] for row in written["rows"]] == [8.0] * 3
    assert written["message_seconds"] == {"median": 6.5, "least": 6.5, "most": 6.5, "unit": "s"}
    assert written["rows"][0]["core_speed"] == 0.9


def test_a_run_of_one_round_is_compared_with_a_longer_one():
    with pytest.raises(InputError, match="--rounds: '1' is not allowed; allowed: more than 1"):
        node_messages.main(["--rounds", "1"])


@pytest.mark.soak
@pytest.mark.net
def test_a_node_takes_seconds_for_a_message(tmp_path):
    node_messages.main(["--quick", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert 1 < row["message_seconds"] < 60
    assert 0 < row["processor_seconds"]["1"] < row["processor_seconds"]["2"]
