"""The benchmark of the edge link: rows by hand, trees of processes, a relay, small real runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import edge
import edge_memory
import edge_overhead
import edge_server
import numpy as np
import pytest
from edge_first_step import FirstStep
from edge_memory import JOBS, QUICKSTART, RESNET32, Peak
from edge_meter import Memory, Meter, look, tree_of
from edge_rows import Case, megabytes, row_of
from edge_wire import Relay

from mest_fed.errors import InputError

GOAL = Case("idle", "waits", "MB", 45.0)
#: A process of some megabytes, and a child of as many.
PARENT = """
import subprocess, sys
held = bytes(range(256)) * 40_000
more = "import time; held = bytes(range(256)) * 80_000; time.sleep(60)"
started = subprocess.Popen([sys.executable, "-c", more])
print(started.pid, flush=True)
started.wait()
"""


def memory(pss, *, alone=0, processes=1):
    return Memory(1.0, int(pss * 1e6), int(alone * 1e6), int(alone * 1e6), 0, processes)


def test_a_row_by_hand():
    row = row_of(GOAL, [46.0, 40.0, 44.0], [250.0, 264.0], loads=[])
    assert (row["ours"], row["peer"], row["ratio"]) == (44.0, 257.0, 5.841)
    assert (row["ours_spread"], row["peer_spread"]) == (3.0, 7.0)
    assert row["ours_runs"] == [46.0, 40.0, 44.0]
    assert (row["goal"], row["met"], row["runs"]) == (45.0, True, 3)
    assert "goal" not in row_of(Case("idle", "waits", "MB"), [1.0])
    assert megabytes([1_500_000]) == [1.5]


def test_a_goal_is_met_by_the_median_of_ours():
    assert row_of(GOAL, [45.0])["met"]
    assert not row_of(GOAL, [45.1, 45.2, 1.0])["met"]
    assert not row_of(Case("overhead", "up", "%", 3.0, below=True), [3.0])["met"]
    alone = row_of(GOAL, [], [250.0])
    assert (alone["ours"], alone["peer"]) == (None, 250.0)
    assert not {"met", "ratio"} & alone.keys()


def options(*arguments):
    return edge.parse([*arguments])


def test_sides_run_in_turn():
    order = []
    sides = {name: lambda name=name: order.append(name) or name for name in edge.SIDES}
    found, before = edge.in_turn(sides, options("--repeats", "2"))
    assert order == ["lean", "stock", "stock", "lean"]
    assert found == {"lean": ["lean"] * 2, "stock": ["stock"] * 2}
    assert len(before) == 4
    found, _ = edge.in_turn(sides, options("--repeats", "2", "--sides", "stock"))
    assert found == {"lean": [], "stock": ["stock"] * 2}


def test_idle_rows(monkeypatch):
    monkeypatch.setattr(edge_memory, "lean_idle", lambda *_: memory(32, alone=62))
    monkeypatch.setattr(edge_memory, "stock_idle", lambda *_: memory(240, alone=245, processes=3))
    shared, alone = edge.idle(options("--quick"))
    assert (shared["name"], shared["ours"], shared["peer"]) == ("waits for work, PSS", 32.0, 240.0)
    assert (shared["met"], alone["met"], alone["ratio"]) == (True, False, 3.952)
    assert shared["processes"] == {"lean": 1, "stock": 3}


def test_training_rows(monkeypatch):
    peak = Peak(52_000_000, 82_000_000, 83_000_000, memory(43), 0.02)
    asked = []
    monkeypatch.setattr(edge_memory, "lean_peak", lambda _, *job: asked.append(job) or peak)
    monkeypatch.setattr(edge_memory, "stock_peak", lambda _, *job: asked.append(job) or peak)
    rows = list(edge.training(options("--quick", "--rounds", "2")))
    assert asked == [(RESNET32, 2), (QUICKSTART, 2), (QUICKSTART, 2)]
    goals = [(row["name"].rpartition(", ")[2], row.get("met")) for row in rows]
    one, other = [("PSS", True), ("alone", True), ("VmHWM", True)], [("PSS", True)]
    assert goals[:4] == [*one, ("PSS", None)]
    assert goals[4:] == [*other, ("alone", False), ("VmHWM", False), ("PSS", None)]
    assert [row["peer"] for row in rows] == [None] * 4 + [52.0, 82.0, None, None]


def first_steps(monkeypatch, updates):
    def step(side, _):
        return FirstStep(
            {"imported": 0.5 if side == "lean" else 4.0, "trained": 0.25}, updates[side]
        )

    monkeypatch.setattr(edge, "prepare", lambda _: None)
    monkeypatch.setattr(edge, "first_step", step)


def test_first_steps_are_sums_of_their_parts(monkeypatch):
    first_steps(monkeypatch, {"lean": "a", "stock": "a"})
    whole, imported, trained = edge.first_gradient(options("--quick"))
    assert (whole["ours"], whole["peer"], whole["met"]) == (0.75, 4.25, True)
    assert (imported["ours"], imported["peer"]) == (0.5, 4.0)
    assert trained["ratio"] == 1.0


def test_first_steps_make_the_same_update(monkeypatch):
    first_steps(monkeypatch, {"lean": "a", "stock": "b"})
    with pytest.raises(SystemExit, match="the same update"):
        list(edge.first_gradient(options("--quick")))


def test_overhead_is_what_passes_beside_the_payload(monkeypatch):
    found = {"begin": 6000, "down": [102_000], "up": [103_000]}
    monkeypatch.setattr(edge, "_count_bytes", lambda _: found)
    up, down, begin, *plain = edge.overhead(options("--quick"))
    assert (up["ours"], up["met"]) == (3.0, False)  # below the goal, not at it
    assert (down["ours"], down["met"], begin["ours"]) == (2.0, True, 6.0)
    assert [row["link"] for row in plain] == ["without TLS"] * 3


def test_what_was_measured_before_a_failure_is_kept(monkeypatch, tmp_path, capsys):
    def fails(_):
        raise SystemExit("error: no node")
        yield

    rows = {"idle": lambda _: iter([row_of(GOAL, [44.0])]), "server": fails}
    monkeypatch.setattr(edge, "PARTS", edge.PARTS | rows)
    path = tmp_path / "rows.json"
    with pytest.raises(SystemExit, match="no node"):
        edge.main(["--quick", "--parts", "server", "idle", "--json", str(path)])
    written = json.loads(path.read_text())
    assert [row["name"] for row in written["rows"]] == ["waits"]
    assert written["machine"]
    assert len(written["loads"]["before"]) == 3
    assert "waits" in capsys.readouterr().out


def test_wrong_input():
    with pytest.raises(InputError, match="invalid choice: 'x'"):
        edge.main(["--parts", "x"])
    with pytest.raises(InputError, match="positive integer"):
        edge.main(["--repeats", "0"])


@pytest.fixture
def parent():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            yield process.pid, child
        finally:
            os.kill(child, signal.SIGKILL)  # its parent ends when it does


def test_a_tree_is_a_process_and_its_descendants(parent):
    pid, child = parent
    assert tree_of(pid) == [pid, child]
    end = time.monotonic() + 20
    # 10 MB and 20 MB that they share with nobody.
    while (whole := look(pid)).pss < 30e6 or whole.rss - look(child).rss < 10e6:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert whole.processes == 2
    assert 0 < whole.pss <= whole.rss
    assert whole.alone <= whole.rss  # the two map the same files
    assert look(child).rss > 20e6
    assert whole.high_water >= whole.rss


def test_a_meter_sees_what_was_there_for_a_moment(parent):
    pid, _ = parent
    with Meter(pid, interval=0.001) as meter:
        while len(meter.samples) < 3:
            time.sleep(0.01)
    assert meter.most("pss") == max(sample.pss for sample in meter.samples) > 0
    assert 0 < meter.seconds_between < 5


def test_nothing_is_said_of_a_process_that_has_ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with Meter(process.pid) as meter:
        assert look(process.pid) is None
    with pytest.raises(SystemExit, match="no sample"):
        meter.most("pss")


@pytest.mark.parametrize("job", JOBS)
def test_a_node_and_its_server_have_the_same_kind_of_images(job, tmp_path):
    kind, path = edge_memory.place_of(tmp_path, job)
    assert kind == "--data"
    with np.load(path) as own:
        assert own["images"].shape == (job.examples, *job.shape)
        assert (own["images"].dtype, set(own["labels"])) == (np.uint8, set(range(10)))
    if job.from_file:
        with np.load(tmp_path / "run.npz") as run:
            assert run["x_train"].shape == (job.examples, *job.shape)


def test_a_relay_counts_the_bytes_of_each_way():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo():
            with listener.accept()[0] as peer:
                peer.sendall(peer.recv(100) * 2)

        answering = threading.Thread(target=echo)
        answering.start()
        with (
            Relay(listener.getsockname()[1]) as relay,
            socket.create_connection(("127.0.0.1", relay.port)) as client,
        ):
            client.sendall(b"12345")
            received = b""
            while len(received) < 10:
                received += client.recv(100)
            answering.join()
            assert (relay.up, relay.down, relay.passed) == (5, 10, 15)


@pytest.mark.parametrize("tls", [True, False])
def test_updates_pass_with_little_beside_them(tls):
    found = edge_overhead.passed(tls=tls, payload=100_000, repeats=2)
    assert found.begin > (2000 if tls else 100)
    for size in (*found.down, *found.up):
        assert 100_200 < size < 103_000


@pytest.mark.soak
@pytest.mark.net
@pytest.mark.parametrize("tls", [True, False])
def test_a_server_of_some_nodes(tls):
    served = edge_server.serve(edge_server.Crowd(12, 2, 2, 10_000, tls))
    assert 0 < served.register_seconds < 60
    assert len(served.round_seconds) == 2
    assert served.before <= served.peak
    assert 0 < served.peak_pss <= served.peak


@pytest.mark.soak
@pytest.mark.net
def test_both_sides_make_the_first_step(tmp_path):
    path = tmp_path / "rows.json"
    edge.main(["--quick", "--parts", "first-gradient", "--json", str(path)])
    whole, *parts = json.loads(path.read_text())["rows"]
    assert 0 < whole["ours"] < whole["peer"]
    assert sum(row["ours"] for row in parts) == pytest.approx(whole["ours"], abs=0.001)


@pytest.mark.soak
@pytest.mark.net
def test_a_lean_node_idle_and_training(tmp_path):
    path = tmp_path / "rows.json"
    edge.main(["--quick", "--parts", "idle", "training", "--sides", "lean", "--json", str(path)])
    rows = {row["name"]: row["ours"] for row in json.loads(path.read_text())["rows"]}
    assert 10 < rows["waits for work, PSS"] <= rows["waits for work, alone"] < 200
    assert rows["waits for work, alone"] < rows[f"{RESNET32.name}, VmHWM"] < 400


@pytest.mark.soak
@pytest.mark.net
def test_flowers_node_idle(tmp_path):
    path = tmp_path / "rows.json"
    edge.main(["--quick", "--parts", "idle", "--sides", "stock", "--json", str(path)])
    row = json.loads(path.read_text())["rows"][0]
    assert (row["ours"], row["processes"]["lean"]) == (None, None)
    assert row["peer"] > 100
    assert row["processes"]["stock"] >= 3
