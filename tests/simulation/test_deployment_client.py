"""Devices started by ``mest-fed client`` over TLS: shared data, own data, a key that is refused."""

import re
import signal
import subprocess

import numpy as np
import psutil
import pytest
from flower_processes import CONNECTION, SCRIPTS, TWO_DEVICES, FlowerHome, copy_app, free_ports
from tls_files import write_key, write_tls

from mest_fed.cli.app import REFUSED

pytestmark = [pytest.mark.soak, pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]

MEASURED = re.compile(r"memory budget: ([\d.]+) MB of a limit of 700 MB; (\d+) MB in use")
EXPECTED = re.compile(r"budget: up to about ([\d.]+) MB for training")


@pytest.fixture
def home(tmp_path):
    with FlowerHome(tmp_path / "home") as home:
        yield home


@pytest.fixture
def superlink(home, tmp_path):
    """Start a SuperLink with TLS that takes registered keys alone; return a device's options."""
    (port,) = free_ports(1)
    tls = write_tls(tmp_path / "tls")
    secure = f'root-certificates = "{tls / "ca.pem"}"'
    connection = CONNECTION.format(port=port).replace("insecure = true", secure)
    (home.folder / "config.toml").write_text(connection, encoding="utf-8")
    files = ("--ssl-ca-certfile", "ca.pem"), ("--ssl-certfile", "server.pem")
    options = [part for option, name in files for part in (option, tls / name)]
    options += ["--ssl-keyfile", tls / "server.key", "--enable-supernode-auth"]
    home.launch_server(port, "flower-superlink", "--host", "127.0.0.1", *options)
    return "--superlink", f"127.0.0.1:{port}", "--root-certificates", str(tls / "ca.pem")


def own_examples(file):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(file, images=images, labels=np.arange(40) % 10)
    return str(file)


def test_two_devices_train(tmp_path, home, superlink):
    keys = [write_key(tmp_path / f"device{number}") for number in range(3)]
    stranger = ("--auth-key", keys[2], "--partition", "0", "--device", "rpi-4")
    refused = subprocess.run(
        [SCRIPTS / "mest-fed", "client", *superlink, *stranger],
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert refused.returncode == REFUSED
    assert refused.stderr.startswith("error: the SuperLink does not know the key in ")
    assert refused.stderr.count("\n") == 1

    for key in keys[:2]:
        register = [
            SCRIPTS / "flwr",
            "supernode",
            "register",
            str(key.with_suffix(".pub")),
            "loopback",
        ]
        subprocess.run(register, env=home.environment, check=True, capture_output=True, timeout=120)
    own = own_examples(tmp_path / "own.npz")
    choices = (
        ("--partition", "0", "--device", "rpi-4", "--memory-limit", "700MB"),
        ("--data", own, "--device", "rpi-4", "--budget", "200MB", "--", "--max-retries", "9"),
    )
    devices = [
        home.pending_task("mest-fed", "client", *superlink, "--auth-key", key, *choice)
        for key, choice in zip(keys, choices, strict=False)
    ]
    app = copy_app(tmp_path / "mest-fed")
    text, rounds = home.run_app(app, "loopback", settings=TWO_DEVICES)
    log = (home.folder / "mest-fed.log").read_text(encoding="utf-8")
    assert [number for number, *_ in rounds] == [0, 1, 2], text + log
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0], [2, 0, 0]], text + log

    assert "memory limit: 700 MB, held by" in log
    assert "budget: 200 MB for training (--budget)" in log
    # Worked out at the first message, and kept for the next processes that get one.
    ((budget, in_use),) = MEASURED.findall(log)
    (expected,) = EXPECTED.findall(log)
    assert float(budget) + int(in_use) == pytest.approx(0.95 * 700, abs=2)
    assert float(budget) == pytest.approx(float(expected), abs=150)

    processes = [each for device in devices for each in psutil.Process(device.pid).children(True)]
    assert len(processes) >= 4, "a SuperNode and a SuperExec each"
    devices[0].send_signal(signal.SIGTERM)
    devices[1].kill()
    assert devices[0].wait(timeout=30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []
