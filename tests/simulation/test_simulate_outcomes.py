"""How tasks end, and that a run in which nothing happened does not pass for a success."""

import json
import math
import sys
from collections import Counter

import pytest
from tiny_run import read_rows, read_summary, start, tiny_config

import mest_fed.client.handlers
import mest_fed.server.app
from mest_fed import cli
from mest_fed.config import to_toml
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.statistics import lost_by_reason, status_counts
from mest_fed.simulation.report.tables import headline_tiles

#: So slow that each task takes days, and no deadline: whoever waits gets every update.
SLOW = {
    "stragglers": 1.0,
    "straggler_factor": 1e8,
    "availability": "always",
    "process_per_message": False,
}
DAY = 86_400.0


@pytest.mark.soak
@pytest.mark.parametrize(
    "server",
    [
        {},
        {"over_selection": 1.5},
        {"mode": "buffered", "concurrency": 3, "buffer": 3},
        {"mode": "semi-sync", "concurrency": 3, "period": 1e9},
    ],
    ids=["sync", "over-selected", "buffered", "semi-sync"],
)
@pytest.mark.parametrize("deadline", [0.0, 1e12])
def test_no_wait_that_was_not_asked_for_ends_a_round(tmp_path, server, deadline):
    config = tiny_config(
        run={"rounds": 1},
        behaviour=SLOW,
        fleet={"deadline": deadline},
        server={**server, "evaluate_clients_every": 1},
    )
    folder = start(tmp_path / "run", config)
    summary, rows = read_summary(folder), read_rows(folder, "clients")
    assert summary["tasks"]["ok"] == len(rows) == 3
    assert min(row["download_seconds"] + row["upload_seconds"] for row in rows) > 1.0
    assert summary["virtual_seconds"] > DAY
    assert summary["final_client_accuracy"] is not None  # evaluation waits, too


def test_the_deadline_that_was_asked_for_ends_a_round(tmp_path):
    config = tiny_config(run={"rounds": 1}, behaviour=SLOW, fleet={"deadline": 5000.0})
    rows = read_rows(start(tmp_path / "run", config), "clients")
    assert {(row["status"], row["failure"]) for row in rows} == {("late", "deadline")}


@pytest.fixture
def fleet_of_all_statuses(monkeypatch):
    """Make clients of some partitions fail, or send what the server refuses."""
    train = mest_fed.client.handlers.train_round

    def sometimes(task, received, order, who, kept, **options):
        if who.partition % 9 == 1:
            raise KeyError("img")
        result = train(task, received, order, who, kept, **options)
        if who.partition % 9 == 2:
            result.totals.sums["correct"] += 1_000_000  # more than it can have presented
        return result

    monkeypatch.setattr(mest_fed.client.handlers, "train_round", sometimes)


def test_every_status_is_the_same_in_rows_summary_and_report(tmp_path, fleet_of_all_statuses):
    config = tiny_config(
        run={"rounds": 8},
        fleet={"devices": 30, "mix": "rpi-zero-2w:1, phone-high:1", "deadline": 0.5},
        behaviour={
            "availability": "profile",
            "dropout": 0.1,
            "stragglers": 0.1,
            "process_per_message": False,
        },
        server={"clients_per_round": 6, "over_selection": 2.5, "evaluate_clients_every": 0},
    )
    folder = start(tmp_path / "run", config)
    run, summary = load_run(folder), read_summary(folder)
    rows = read_rows(folder, "clients")
    counts = Counter(row["status"] for row in rows)
    of_simulated = set(TaskStatus) - {TaskStatus.DECLINED}  # which real devices alone say
    assert set(counts) == of_simulated, counts
    assert summary["tasks"] == status_counts(run) == {"declined": 0, **counts}
    assert summary["failures"] == Counter(row["failure"] for row in rows if row["failure"])
    for row in rows:
        expected = "ok" if row["failure"] is None else FailureKind(row["failure"]).status
        assert row["status"] == expected
    lost = lost_by_reason(run)
    assert sum(entry.total for entry in lost) == len(rows) - counts["ok"]
    tile = next(tile for tile in headline_tiles(run) if tile.label == "Updates accepted")
    assert tile.value == str(counts["ok"])
    for status in of_simulated - {TaskStatus.OK}:
        assert f"{counts[status]} {status}" in tile.notes[1]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "accepted an update from every task" not in page
    share = f"{len(rows) - counts['ok']} tasks of {len(rows)} gave no update"
    assert share in page


def simulate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    command = ["mest-fed", "simulate", "--workers", "0", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capsys.readouterr()


def config_file(tmp_path, **sections):
    path = tmp_path / "tiny.toml"
    path.write_text(to_toml(tiny_config(run={"rounds": 2}, **sections)), encoding="utf-8")
    return path


def never_there(tmp_path):
    trace = tmp_path / "never.json"
    trace.write_text(json.dumps({"devices": {"*": [[999_999_998, 999_999_999]]}}), encoding="utf-8")
    return {"behaviour": {"availability": "trace", "trace": str(trace)}}


@pytest.mark.soak
def test_a_run_in_which_no_device_was_there_fails(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "run"
    config = config_file(tmp_path, **never_there(tmp_path))
    status, _, err = simulate(monkeypatch, capsys, "--out", folder, "--config", config)
    assert status == 3, err
    assert "nothing was trained: the server accepted no update in 2 rounds (6 away)" in err
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Nothing was trained" in page.partition("<h2")[0]  # before all else
    summary = read_summary(folder)
    assert summary["clients_trained"] == 0
    # An instruction to a device that was away was not sent.
    assert summary["bytes_down"] == summary["bytes_up"] == 0
    assert {row["bytes_down"] for row in read_rows(folder, "clients")} == {0}
    assert "nothing was trained" in (folder / "run.log").read_text(encoding="utf-8")


def test_a_round_counts_the_instructions_that_devices_received(tmp_path):
    config = tiny_config(
        run={"rounds": 2, "seed": 2},
        server={"evaluate_clients_every": 0},
        fleet={"mix": "phone-low:1"},  # away now and then
    )
    folder = start(tmp_path / "run", config)
    rows, rounds = read_rows(folder, "clients"), read_rows(folder, "rounds")
    assert {row["status"] for row in rows} == {"ok", "away"}
    for row in rows:
        assert (row["bytes_down"] == 0) == (row["status"] == "away")
    for row in rounds:
        of_round = [client for client in rows if client["round"] == row["round"]]
        assert row["bytes_down"] == sum(client["bytes_down"] for client in of_round)
        assert row["tasks"] == Counter(client["status"] for client in of_round)
        assert row["failures"] == Counter(c["failure"] for c in of_round if c["failure"])
    summary = read_summary(folder)
    assert summary["devices_asked"] == len({client["partition"] for client in rows})
    assert (summary["devices"], summary["deployed"]) == (12, False)


def test_a_run_that_diverges_fails_with_one_line_that_says_so(monkeypatch, capsys, tmp_path):
    evaluate, calls = mest_fed.server.app.evaluate, []

    def diverged(*arguments):
        calls.append(arguments)
        totals = evaluate(*arguments)
        if len(calls) > 2:  # the first weights, and round 1
            totals.loss = math.inf
        return totals

    monkeypatch.setattr(mest_fed.server.app, "evaluate", diverged)
    folder = tmp_path / "run"
    config = config_file(
        tmp_path,
        task={"name": "regression"},
        training={"learning_rate": 0.01},
        server={"evaluate_every": 1},
        behaviour={"availability": "always"},
    )
    status, out, err = simulate(monkeypatch, capsys, "--out", folder, "--config", config)
    line = (
        "the run diverged: the loss of the model that it leaves is not finite, from round 2 on; "
        "a lower training.learning_rate may help"
    )
    assert (status, err.count(line), "diverged" in out) == (3, 1, False)
    assert line in (folder / "run.log").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "T" + line[1:] in page.partition("<h2")[0]
    assert [row["diverged"] for row in read_rows(folder, "rounds")] == [False, False, True]
    summary = read_summary(folder)
    assert summary["diverged_round"] == 2
    assert "loss" not in summary["final_metrics"]  # that of the first weights would be false


@pytest.mark.soak
def test_a_run_in_which_every_client_failed_fails(monkeypatch, capsys, tmp_path):
    def broken(*_, **__):
        raise KeyError("img")

    monkeypatch.setattr(mest_fed.client.handlers, "train_round", broken)
    folder = tmp_path / "run"
    config = config_file(tmp_path, behaviour={"availability": "always"})
    status, _, err = simulate(monkeypatch, capsys, "--out", folder, "--config", config)
    assert (status, "(6 failed)" in err) == (3, True)
    assert read_summary(folder)["failures"] == {"client-error": 6}


@pytest.mark.soak
def test_a_run_of_which_a_round_was_empty_says_so(tmp_path, monkeypatch):
    train = mest_fed.client.handlers.train_round

    def first_round_fails(task, received, order, who, kept, **options):
        if order.round == 1:
            raise KeyError("img")
        return train(task, received, order, who, kept, **options)

    monkeypatch.setattr(mest_fed.client.handlers, "train_round", first_round_fails)
    config = tiny_config(run={"rounds": 2}, behaviour={"availability": "always"})
    page = write_report(start(tmp_path / "run", config)).read_text(encoding="utf-8")
    assert "The server accepted no update in 1 of 2 rounds." in page.partition("<h2")[0]
