"""A run of a Flower app: its rows, its log, and the same bits on any number of workers."""

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from mest_fed.config.fleet import FleetConfig
from mest_fed.run_rows.row import as_row
from mest_fed.server.flower_internals import run_server_app
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.engine.executor import SerialExecutor
from mest_fed.simulation.engine.interfaces import make_nodes
from mest_fed.simulation.flower_app.project import AppFolder, read_project
from mest_fed.simulation.flower_app.record import AppRecord
from mest_fed.simulation.flower_app.run import AppRun, RecordedGrid
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.load import load_run

APPS = Path(__file__).parent.parent / "flower_apps"
FLEET = FleetConfig.model_validate(
    {
        "fleet": {"mix": "rpi-4:1, phone-low:1", "devices": 6},
        "behaviour": {"dropout": 0.2, "compute_jitter": 0.3, "battery": True},
        "work": {"flops_per_example": 1e8, "memory": "50MB"},
    }
)


def play(name, out, *, fleet=None, workers=0, overrides=()):
    """Run an app of the tests; return its round rows, its task rows and its summary."""
    project = read_project(APPS / name).with_overrides(overrides)
    AppRun.of(project, fleet, out).run(workers)
    gc.collect()  # what Ray left open is closed here, where that is no error
    rows = [
        [json.loads(line) for line in (out / file).read_text().splitlines()]
        for file in ("rounds.jsonl", "clients.jsonl")
    ]
    return *rows, json.loads((out / "summary.json").read_text())


def test_rows_tell_rounds_tasks_and_metrics(tmp_path):
    rounds, tasks, summary = play("torch_app", tmp_path / "run")
    assert [row["round"] for row in rounds] == [1, 2]
    assert [(row["trained"], row["evaluated"]) for row in rounds] == [(4, 4), (4, 4)]
    kinds = [(task["round"], task["type"]) for task in tasks]
    assert kinds == [(r, kind) for r in (1, 2) for kind in ("train", "evaluate") for _ in range(4)]
    assert {task["partition"] for task in tasks} == {0, 1, 2, 3}
    (result,) = summary["results"]
    assert result["strategy"] == "FedAvg"
    assert set(result["metrics"]["server"]) == {"0", "1", "2"}
    # The means of the replies are the strategy's own.
    for row in rounds:
        aggregated = result["metrics"]["evaluate"][str(row["round"])]
        assert row["evaluate_metrics"] == pytest.approx(aggregated)
    assert summary["tasks"]["ok"] == 16
    assert summary["bytes_up"] == sum(row["bytes_up"] for row in rounds)


def test_a_loop_over_the_grid_has_rounds_too(tmp_path):
    rounds, tasks, summary = play("numpy_app", tmp_path / "run", overrides=["rounds=2"])
    assert [row["round"] for row in rounds] == [0, 1, 2]
    assert rounds[0]["trained"] == 0  # the query of sizes
    assert {task["type"] for task in tasks} == {"train"}
    assert summary["server_state"]["loss"] > 0
    assert set(summary["server_arrays"]) == {"arrays"}
    page = write_report(tmp_path / "run").read_text()
    assert 'id="metrics"' in page
    assert "no time passed" in page


def test_the_log_has_what_server_and_clients_say(tmp_path):
    play("mods_app", tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert "INFO Starting DifferentialPrivacyClientSideFixedClipping strategy:" in log
    assert "node 1002: INFO :      Incoming message size: " in log
    # A client's part in Flower's log is there once: with its node.
    assert log.count("Incoming message size") == log.count(": INFO :      Incoming message size")
    play("numpy_app", tmp_path / "other")
    assert "INFO round 3: loss 5.8" in (tmp_path / "other" / "run.log").read_text()


def test_an_app_of_the_older_interface_runs(tmp_path):
    rounds, *_ = play("legacy_app", tmp_path / "run")
    assert [(row["round"], row["trained"], row["evaluated"]) for row in rounds] == [
        (1, 4, 4),
        (2, 4, 4),
    ]
    assert "loss" in rounds[-1]["evaluate_metrics"]
    write_report(tmp_path / "run")


@pytest.mark.soak
def test_devices_take_time_and_drop_out_and_the_report_shows_it(tmp_path):
    rounds, tasks, summary = play("torch_app", tmp_path / "run", fleet=FLEET)
    assert {task["device"] for task in tasks} == {"rpi-4", "phone-low"}
    assert summary["tasks"]["dropped"] > 0
    assert summary["virtual_seconds"] == rounds[-1]["virtual_seconds"] > 0
    trained = [t for t in tasks if t["type"] == "train" and t["status"] == "ok"]
    assert all(task["train_seconds"] > 0 for task in trained)
    assert summary["energy_joules"] == pytest.approx(sum(t["energy_joules"] for t in tasks))
    read = load_run(tmp_path / "run").tasks
    assert [as_row(task) | row for task, row in zip(read, tasks, strict=True)] == [
        as_row(task) for task in read
    ]
    page = write_report(tmp_path / "run").read_text()
    for figure in ("metrics", "devices", "timeline", "energy", "failures"):
        assert f'id="{figure}"' in page
    assert "Raspberry Pi 4" in page


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", ["torch_app", "mods_app"])
def test_a_fleet_gives_the_same_bits_on_any_number_of_workers(name, tmp_path):
    alone = play(name, tmp_path / "alone", fleet=FLEET)
    both = play(name, tmp_path / "both", fleet=FLEET, workers=2)
    for rows in (alone[0], both[0], [alone[2]], [both[2]]):
        for row in rows:
            del row["wall_seconds"]
    assert both == alone
    texts = [
        [line.partition(" ")[2].partition(" ")[2] for line in file.read_text().splitlines()]
        for file in (tmp_path / "alone" / "run.log", tmp_path / "both" / "run.log")
    ]
    assert [t for t in texts[0] if "finished in" not in t] == [
        t for t in texts[1] if "finished in" not in t
    ]


ELSEWHERE = """
import pickle, sys
from pathlib import Path
from mest_fed.simulation.flower_app.project import AppFolder
folder = pickle.loads(Path(sys.argv[1]).read_bytes())
folder.install()
import numpyapp.client_app
print(numpyapp.client_app.__file__)
"""


def test_a_machine_without_the_apps_folder_gets_its_files(tmp_path):
    shutil.copytree(APPS / "numpy_app", tmp_path / "app")
    (tmp_path / "app" / ".secret").write_text("stays here")
    (tmp_path / "app" / "data.bin").write_bytes(bytes(2 << 20))
    folder = AppFolder.with_files(tmp_path / "app")
    names = {name for name, _ in folder.files}
    assert {"pyproject.toml", "numpyapp/client_app.py"} <= names
    assert not names & {".secret", "data.bin"}
    shutil.rmtree(tmp_path / "app")
    (tmp_path / "folder").write_bytes(pickle.dumps(folder))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "folder")]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(f"{tmp_path}/mest-fed-app-")


def test_pushed_messages_belong_to_the_round_in_which_they_were_pushed(tmp_path):
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.train()
    def train(message, context):
        return Message(RecordDict(), reply_to=message)

    @server_app.main()
    def main(grid, context):
        nodes = list(grid.get_node_ids())
        first = grid.push_messages([Message(RecordDict(), node, "train") for node in nodes[:2]])
        second = grid.push_messages([Message(RecordDict(), node, "train") for node in nodes[2:]])
        left = {*first, *second}
        while left:
            left -= {m.metadata.reply_to_message_id for m in grid.pull_messages(left)}

    folder = RunFolder(tmp_path / "run")
    folder.begin("")
    record = AppRecord(folder, None)
    grid = RecordedGrid(record, make_nodes(4), SerialExecutor(client_app))
    run_server_app(server_app, grid)
    record.end(grid.now)
    rows = (tmp_path / "run" / "clients.jsonl").read_text().splitlines()
    found = [(json.loads(row)["round"], json.loads(row)["partition"]) for row in rows]
    assert sorted(found) == [(1, 0), (1, 1), (2, 2), (2, 3)]
