"""A SuperLink with ``mest-fed client``, and a lean node of the edge link, in one run."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest
from flower_processes import CONNECTION, SCRIPTS, FlowerHome, copy_app, free_ports

from mest_fed.config import from_table, read_toml
from mest_fed.task import Task

pytestmark = [pytest.mark.soak, pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE = 40.0
SETTINGS = {
    "run.rounds": 3,
    "fleet.devices": 2,
    "fleet.mix": "rpi-4:1",
    "fleet.deadline": DEADLINE,
    "model.width": 0.25,
    "server.min_nodes": 2,
    "server.clients_per_round": 2,
    "server.evaluate_clients_every": 0,
}


@pytest.fixture
def home(tmp_path):
    with FlowerHome(tmp_path / "home") as home:
        yield home


def table_of(settings):
    table = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return table


def rows(file):
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def outcomes(run):
    return {(row["round"], row["partition"]): row["status"] for row in rows(run / "clients.jsonl")}


def wait_for_round(run, number, process, log):
    end = time.monotonic() + 240
    while number not in [row["round"] for row in rows(run / "rounds.jsonl")]:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def certificates(home, folder):
    """Make the certificates of the edge link and of one node."""
    for arguments in (("new", folder, "--host", "127.0.0.1"), ("node", folder, "lean")):
        command = [SCRIPTS / "mest-fed", "certs", *arguments]
        subprocess.run(command, env=home.environment, check=True, capture_output=True, timeout=120)


def test_nodes_of_both_kinds_train_in_one_round(tmp_path, home):
    port, link = free_ports(2)
    tls, run = tmp_path / "tls", tmp_path / "run"
    certificates(home, tls)
    task = Task(from_table(table_of(SETTINGS), "test"))
    data, place = task.data.train.examples, task.partitions[1]
    np.savez(tmp_path / "own.npz", x=data.inputs[place], y=data.targets[place])
    (home.folder / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    home.launch_server(port, "flower-superlink", "--insecure", "--host", "127.0.0.1")
    where = ("--superlink", f"127.0.0.1:{port}", "--insecure", "--device", "rpi-4")
    home.pending_task(SCRIPTS / "mest-fed", "client", *where, "--partition", "0")
    deployment = {
        "deployment.folder": run,
        "deployment.link": f"127.0.0.1:{link}",
        "deployment.link_certificates": tls,
    }
    said = " ".join(
        f"{key}={value}" if isinstance(value, int | float) else f"{key}='{value}'"
        for key, value in (SETTINGS | deployment).items()
    )
    app = copy_app(tmp_path / "mest-fed")
    server = home.pending_task("flwr", "run", app, "loopback", "--stream", "--run-config", said)
    where = ("--link", f"127.0.0.1:{link}", "--certificates", tls / "nodes" / "lean")
    own = ("--data", tmp_path / "own.npz", "--state", tmp_path / "state", "--partition", "1")
    command = (SCRIPTS / "mest-fed", "node", *where, *own, "--device", "rpi-4")
    node = home.pending_task(*command)
    log = home.folder / "flwr.log"

    wait_for_round(run, 1, server, log)
    node.send_signal(signal.SIGSTOP)
    wait_for_round(run, 2, server, log)
    node.send_signal(signal.SIGCONT)
    assert server.wait(timeout=240) == 0, log.read_text()
    both = log.read_text() + (home.folder / "mest-fed.log").read_text()
    found = outcomes(run)
    assert found.pop((2, 1)) in ("late", "ok"), both  # ok: it had reported before it was stopped
    assert found == {(1, 0): "ok", (1, 1): "ok", (2, 0): "ok", (3, 0): "ok", (3, 1): "ok"}, both
    clients = rows(run / "clients.jsonl")
    assert all(row["train_seconds"] > 0 for row in clients if row["status"] == "ok")
    seconds = [row["wall_seconds"] for row in rows(run / "rounds.jsonl")]
    if outcomes(run)[2, 1] == "late":
        assert DEADLINE <= seconds[2] - seconds[1] < DEADLINE + 20, both
    summary = json.loads((run / "summary.json").read_text())
    assert summary["clients_trained"] + summary["clients_failed"] == 6
    assert read_toml(run / "config.toml")["deployment"]["link"] == f"127.0.0.1:{link}"
    assert (run / "model.pt").exists()
    assert "the edge link listens on port" in both
    node.terminate()
    assert node.wait(timeout=60) == 128 + signal.SIGTERM
