"""Devices started by ``mest-fed client`` over TLS with the files of ``mest-fed certs``.

One has shared data and one its own; a key is refused; the server is lost and comes back.
"""

import json
import re
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
import torch
from flower_processes import SCRIPTS, TWO_DEVICES, FlowerHome, copy_app, free_ports
from tls_files import CONNECTION_WITH_TLS, superlink_options

from mest_fed.cli.app import REFUSED
from mest_fed.config import from_table, read_toml
from mest_fed.task import Task

pytestmark = [pytest.mark.soak, pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]

MEASURED = re.compile(r"memory budget: ([\d.]+) MB of a limit of 700 MB; (\d+) MB in use")
NAMES = ("pi-1", "pi-2", "stranger")
EXPECTED = re.compile(r"budget: up to about ([\d.]+) MB for training")


@pytest.fixture
def home(tmp_path):
    with FlowerHome(tmp_path / "home") as home:
        yield home


def certs(home, *arguments):
    """Run ``mest-fed certs``; return what it prints."""
    command = [SCRIPTS / "mest-fed", "certs", *arguments]
    return subprocess.run(
        command, env=home.environment, check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.fixture
def folder(home, tmp_path):
    """Make the certificates of a server and three devices."""
    folder = tmp_path / "tls"
    certs(home, "new", folder, "--host", "127.0.0.1")
    for name in NAMES:
        certs(home, "node", folder, name)
    return folder


@pytest.fixture
def start_server(home, folder, tmp_path):
    """Return a function that starts the SuperLink, on one port and with one database."""
    (port,) = free_ports(1)
    text = CONNECTION_WITH_TLS.format(port=port, authority=folder / "authority.pem")
    (home.folder / "config.toml").write_text(text, encoding="utf-8")
    options = [*superlink_options(folder), "--database", tmp_path / "superlink.db"]
    return port, lambda: home.launch_server(port, "flower-superlink", *options)


def own_examples(file):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(file, images=images, labels=np.arange(40) % 10)
    return str(file)


def test_two_devices_train(tmp_path, home, folder, start_server):
    port, start = start_server
    server = start()
    nodes = [folder / "nodes" / name for name in NAMES]
    link = "--superlink", f"127.0.0.1:{port}"
    options = [
        (*link, "--root-certificates", node / "authority.pem", "--auth-key", node / "supernode")
        for node in nodes
    ]
    refused = subprocess.run(
        [SCRIPTS / "mest-fed", "client", *options[2], "--partition", "0", "--device", "rpi-4"],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert refused.returncode == REFUSED
    assert refused.stderr.startswith("error: the SuperLink does not know the key in ")
    assert refused.stderr.count("\n") == 1

    for node in nodes[:2]:
        register = [SCRIPTS / "flwr", "supernode", "register", node / "supernode.pub", "home"]
        subprocess.run(register, env=home.environment, check=True, capture_output=True, timeout=120)
    own = own_examples(tmp_path / "own.npz")
    choices = (
        ("--partition", "0", "--device", "rpi-4", "--memory-limit", "700MB"),
        ("--data", own, "--device", "rpi-4", "--budget", "200MB", "--", "--max-retries", "9"),
    )
    devices = [
        home.pending_task("mest-fed", "client", *option, *choice)
        for option, choice in zip(options, choices, strict=False)
    ]
    app = copy_app(tmp_path / "mest-fed")
    run = tmp_path / "run"
    settings = ["run.rounds=3", f"deployment.folder='{run}'", *TWO_DEVICES[1:]]
    text, rounds = home.run_app(app, "home", settings=settings)
    log = (home.folder / "mest-fed.log").read_text(encoding="utf-8")
    assert [number for number, *_ in rounds] == [0, 1, 2, 3], text + log
    assert [counts for *_, counts in rounds] == [[0, 0, 0], *[[2, 0, 0]] * 3], text + log
    assert_as_a_simulation(run)

    assert "memory limit: 700 MB, held by" in log
    assert "budget: 200 MB for training (--budget)" in log
    # Worked out at the first message, and kept for the next processes that get one.
    ((budget, in_use),) = MEASURED.findall(log)
    (expected,) = EXPECTED.findall(log)
    assert float(budget) + int(in_use) == pytest.approx(0.95 * 700, abs=2)
    assert float(budget) == pytest.approx(float(expected), abs=150)

    for process in [*psutil.Process(server.pid).children(recursive=True), server]:
        process.kill()
    server.wait()
    wait_until(lambda: said_in(home, "Connection attempt failed, retrying in") >= 2)
    start()
    wait_until(lambda: said_in(home, "Connection successful after") >= 2)
    assert [device.poll() for device in devices] == [None, None]

    processes = [each for device in devices for each in psutil.Process(device.pid).children(True)]
    assert len(processes) >= 4, "a SuperNode and a SuperExec each"
    devices[0].send_signal(signal.SIGTERM)
    devices[1].kill()
    assert devices[0].wait(timeout=30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def said_in(home, text):
    return (home.folder / "mest-fed.log").read_text(encoding="utf-8").count(text)


def wait_until(ready):
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def assert_as_a_simulation(run):
    """Check that a run folder holds the final model, the summary and the rounds."""
    table = read_toml(run / "config.toml")
    table["sparsity"]["method"] = "dense"
    dense = Task(from_table(table, "the folder")).build_model()
    dense.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["rounds"], summary["clients_trained"], summary["clients_failed"]) == (3, 6, 0)
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert summary["final_accuracy"] == rows[-1]["accuracy"]
    clients = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    counted = [(row["round"], row["partition"], row["status"]) for row in clients]
    assert len(set(counted)) == len(counted) == 6, counted
    assert {status for *_, status in counted} == {"ok"}
    assert (run / "report.html").exists()
