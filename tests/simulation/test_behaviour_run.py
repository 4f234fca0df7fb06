"""Whole runs over devices with behaviour: one report, also when resumed; and time that passes."""

import pytest
from tiny_run import StopAfter, assert_same_run, read_rows, read_summary, start, tiny_config

from mest_fed.errors import InputError
from mest_fed.simulation.rounds import Interrupted

LIVED = {
    "run": {"rounds": 4, "seed": 5, "checkpoint_every": 100},
    "fleet": {"devices": 12, "mix": "phone-low:2, phone-high:1"},
    "behaviour": {
        "availability": "diurnal",
        "dropout": 0.4,
        "compute_jitter": 0.3,
        "bandwidth_jitter": 0.3,
        "stragglers": 0.3,
        "memory_pressure": 0.03,
        "battery": True,
        "battery_floor": 0.5,
    },
}


@pytest.mark.soak
@pytest.mark.parametrize(
    "server",
    [
        {"selection": "utility", "clients_per_round": 4},
        {"selection": "available", "mode": "buffered", "concurrency": 4, "buffer": 2},
    ],
    ids=lambda server: server["selection"],
)
def test_a_life_goes_on_when_a_run_is_resumed(tmp_path, server):
    config = tiny_config(**LIVED, server=server)
    whole = start(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config, display=StopAfter(2))
    folder = start(tmp_path / "run", resume=True)
    assert_same_run(folder, whole)
    assert read_summary(folder)["model_sha256"] == read_summary(whole)["model_sha256"]
    rows = read_rows(whole, "clients")
    # Whoever was selected had been seen to be there, with charge enough.
    reasons = [row["reason"] for row in rows]
    assert not any("away" in str(reason) or "battery" in str(reason) for reason in reasons)
    short = sum(str(reason).startswith("out of memory: ") for reason in reasons)
    assert read_summary(whole)["out_of_memory"] == short > 0
    assert {None, "device dropped out"} <= set(reasons)


def test_a_server_waits_for_devices_that_a_trace_says_are_away(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("device,start,end\n*,5000,5000.001\n3,7000,8000\n")
    config = tiny_config(
        server={"selection": "available", "evaluate_clients_every": 0},
        behaviour={"availability": "trace", "trace": str(trace)},
    )
    folder = start(tmp_path / "run", config)
    first, second, third = read_rows(folder, "rounds")[1:]
    # A millisecond is too short for anyone; then device 3 alone is there.
    assert first["trained"] == 0
    assert first["virtual_seconds"] == pytest.approx(5000.001)
    assert (second["trained"], third["trained"]) == (1, 1)
    assert 7000 < second["virtual_seconds"] < third["virtual_seconds"] < 8000
    lost = [row["reason"] for row in read_rows(folder, "clients") if row["round"] == 1]
    assert lost == ["device went away"] * 3


def test_deadlines_stay_what_they_were_when_a_run_is_resumed(tmp_path):
    config = tiny_config(
        run={"rounds": 4, "seed": 5, "checkpoint_every": 100},
        fleet={"devices": 12, "mix": "phone-low:2, phone-high:1", "deadline": 0.32},
        behaviour={"availability": "always", "process_per_message": False},
        server={"mode": "buffered", "concurrency": 4, "buffer": 2, "evaluate_clients_every": 0},
    )
    whole = start(tmp_path / "whole", config)
    assert {row["status"] for row in read_rows(whole, "clients")} == {"ok", "late"}
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config, display=StopAfter(1))
    assert_same_run(start(tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"fleet": {"deadline": 0.001}}, "fleet.deadline = 0.001 is not allowed: no device meets"),
        ({"server": {"clients_per_round": 13}}, "server.clients_per_round = 13 is not allowed"),
        ({"behaviour": {"availability": "trace", "trace": "none.csv"}}, "no such file: none.csv"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(tmp_path, sections, words):
    with pytest.raises(InputError, match=words):
        start(tmp_path / "run", tiny_config(**sections))
    assert not (tmp_path / "run").exists()
