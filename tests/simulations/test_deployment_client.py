"""Two devices started by ``mest-fed client``: one within a memory limit, one with a budget."""

import re
import signal

import numpy as np
import psutil
import pytest
from flower_processes import CONNECTION, TWO_DEVICES, FlowerHome, copy_app, free_ports

from mest_fed.data import save_partitions

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]

DEVICES = (
    ("--partition", "0", "--device", "rpi-4", "--memory-limit", "900MB"),
    ("--partition", "1", "--device", "rpi-zero-2w", "--budget", "200MB"),
)
MEASURED = re.compile(r"memory budget: ([\d.]+) MB of a limit of 900 MB; (\d+) MB in use")
EXPECTED = re.compile(r"budget: up to about (\d+) MB for training")


@pytest.fixture
def home(tmp_path):
    with FlowerHome(tmp_path / "home") as home:
        yield home


def test_two_devices_train(tmp_path, home):
    (port,) = free_ports(1)
    # A file of partitions spares each process the import of what shares data out.
    parts = tmp_path / "parts.npz"
    save_partitions(parts, [np.arange(0, 600), np.arange(600, 1200)])
    settings = (*TWO_DEVICES, f"data.partition_file='{parts}'")
    (home.folder / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    home.launch_server(port, "flower-superlink", "--insecure", "--host", "127.0.0.1")
    link = ("--insecure", "--superlink", f"127.0.0.1:{port}")
    devices = [home.launch("mest-fed", "client", *link, *each) for each in DEVICES]
    app = copy_app(tmp_path / "mest-fed")
    text, rounds = home.run_app(app, "loopback", settings=settings)
    log = (home.folder / "mest-fed.log").read_text(encoding="utf-8")
    assert [number for number, *_ in rounds] == [0, 1, 2], text + log
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0], [2, 0, 0]], log

    assert "memory limit: 900 MB, held by" in log
    assert "budget: 200 MB for training (--budget)" in log
    # Worked out at the first message, and kept for the next processes that get one.
    ((budget, in_use),) = MEASURED.findall(log)
    (expected,) = EXPECTED.findall(log)
    assert float(budget) + int(in_use) == pytest.approx(0.95 * 900, abs=2)
    assert float(budget) == pytest.approx(int(expected), abs=150)

    processes = [each for device in devices for each in psutil.Process(device.pid).children(True)]
    assert len(processes) >= 4, "a SuperNode and a SuperExec each"
    for device in devices:
        device.send_signal(signal.SIGTERM)
    assert [device.wait(timeout=30) for device in devices] == [128 + signal.SIGTERM] * 2
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
