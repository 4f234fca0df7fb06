"""Runs of real processes over loopback whose devices, or whose server, go away."""

import json
import os
import signal
import time

import device_processes
import psutil
import pytest
import torch
from device_processes import Devices
from flower_processes import CONNECTION, SCRIPTS, FlowerHome, copy_app, free_ports

from mest_fed.config import from_table, read_toml
from mest_fed.simulation.report import write_report
from mest_fed.task import Task

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE = 120


class Deployment:
    """A SuperLink, a run and devices."""

    def __init__(self, folder):
        self.app, self.folder = copy_app(folder / "mest-fed"), folder / "run"
        self.home = FlowerHome(folder / "home").__enter__()
        self.log = self.home.folder / "devices.log"

    def start(self, *settings):
        """Start a SuperLink, what starts devices, and a run; devices come later."""
        (port,) = free_ports(1)
        (self.home.folder / "config.toml").write_text(CONNECTION.format(port=port))
        script = (SCRIPTS / "python", device_processes.__file__, "flower-superlink")
        self.devices = Devices(port, self.log, self.home.environment)
        self.link = self.home.launch_server(port, *script, "--insecure", "--host", "127.0.0.1")
        settings = " ".join(["model.width=0.25", f"deployment.folder='{self.folder}'", *settings])
        run = ("flwr", "run", str(self.app), "loopback", "--stream", "--run-config", settings)
        self.run = self.home.pending_task(*run)

    def stop(self):
        """Kill the SuperLink and the ServerApp at once, and end the devices."""
        for process in [*psutil.Process(self.link.pid).children(recursive=True), self.link]:
            process.kill()
        self.run.kill()
        self.devices.__exit__()

    def rows(self, name):
        path = self.folder / name
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def round(self, number):
        """Wait until a round is done."""
        self.wait(lambda: number in [row["round"] for row in self.rows("rounds.jsonl")])

    def training(self, partition, times=1):
        """Wait until a partition's devices have begun to train so many times in all."""
        line = f"partition {partition} trains"
        self.wait(lambda: self.log.read_text().count(line) >= times)

    def wait(self, ready):
        end = time.monotonic() + PATIENCE
        while not ready():
            said = (self.home.folder / "flwr.log").read_text()
            assert self.run.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)

    def finish(self):
        """Wait for the run's end; return what it said."""
        self.run.wait(timeout=PATIENCE)
        return (self.home.folder / "flwr.log").read_text()

    def outcomes(self):
        """Return what became of each task, by round and partition."""
        return {
            (row["round"], row["partition"]): row["status"] for row in self.rows("clients.jsonl")
        }


@pytest.fixture
def deployment(tmp_path):
    made = Deployment(tmp_path)
    yield made
    made.devices.__exit__()
    made.home.__exit__()


@pytest.mark.soak
def test_a_run_survives_its_devices_and_its_server(deployment):
    settings = ("run.rounds=7", "fleet.devices=4", "fleet.mix='rpi-4:1'")
    deployment.start(*settings, "server.clients_per_round=4", "server.min_nodes=2")
    pids = {partition: deployment.devices.start(partition, 1.5) for partition in (1, 2, 3)}
    gone = {}
    for partition, how in ((1, signal.SIGKILL), (2, signal.SIGTERM), (3, signal.SIGSTOP)):
        number = len(gone) + 1
        deployment.training(partition, number)
        os.kill(pids[partition], how)
        gone[number, partition] = "dropped"
        if number == 1:  # these take part later: one device of partition 1 anew, two of partition 0
            for newcomer in (0, 0, 1):
                deployment.devices.start(newcomer, 1.0)
        deployment.round(number)
    os.kill(pids[3], signal.SIGCONT)
    outcomes = deployment.outcomes()
    assert {task: status for task, status in outcomes.items() if status != "ok"} == gone

    deployment.round(4)
    deployment.stop()
    deployment.start(
        *settings, "server.clients_per_round=4", "server.min_nodes=2", "deployment.resume=true"
    )
    for partition in (0, 1, 2):
        deployment.devices.start(partition)
    said = deployment.finish()
    assert [row["round"] for row in deployment.rows("rounds.jsonl")] == list(range(8)), said
    rows = [(row["round"], row["partition"]) for row in deployment.rows("clients.jsonl")]
    assert len(rows) == len(set(rows)), "a partition was counted twice"
    last = {
        partition: how for (number, partition), how in deployment.outcomes().items() if number == 7
    }
    assert last == {0: "ok", 1: "ok", 2: "ok"}
    assert said.count("it claims partition 0, which node") == 1
    assert_whole(deployment.folder)


@pytest.mark.soak
def test_a_device_that_hangs_costs_a_deadline(deployment):
    settings = ("run.rounds=2", "fleet.devices=2", "server.min_nodes=2", "fleet.mix='rpi-4:1'")
    deployment.start(*settings, "fleet.deadline=3.0", "server.clients_per_round=2")
    deployment.devices.start(0)
    deployment.devices.start(1, 1000.0)
    said = deployment.finish()
    assert deployment.outcomes() == {(1, 0): "ok", (1, 1): "late", (2, 0): "ok", (2, 1): "late"}
    rounds = deployment.rows("rounds.jsonl")
    assert 3 <= rounds[2]["wall_seconds"] - rounds[1]["wall_seconds"] < 30, said
    assert [row["failed"] for row in rounds] == [0, 1, 1]


def assert_whole(folder):
    """Check that a folder holds what a simulation leaves."""
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.toml", "summary.json", "model.pt", "checkpoints", "run.log"}
    table = read_toml(folder / "config.toml")
    table["sparsity"]["method"] = "dense"
    dense = Task(from_table(table, "the folder")).build_model()
    dense.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == 7
    assert summary["tiers"][0]["clients"] == 4
    assert write_report(folder).exists()
