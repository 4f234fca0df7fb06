"""A real SuperLink and two real SuperNodes over loopback."""

import pytest
from flower_processes import CONNECTION, TWO_DEVICES, FlowerHome, copy_app, free_ports

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]

#: Node configurations of unlike devices; the second brings a budget of its own.
NODES = ("partition-id=0 device='rpi-4'", "partition-id=1 device='rpi-zero-2w' budget='200MB'")


@pytest.fixture
def home(tmp_path):
    with FlowerHome(tmp_path / "home") as home:
        yield home


@pytest.mark.soak
def test_two_devices_train(tmp_path, home):
    port, *node_ports = free_ports(1 + len(NODES))
    (home.folder / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    home.launch_server(port, "flower-superlink", "--insecure", "--host", "127.0.0.1")
    link = ("--insecure", "--superlink", f"127.0.0.1:{port}")
    for node_port, config in zip(node_ports, NODES, strict=True):
        home.pending_task("flower-supernode", *link, "--port", node_port, "--node-config", config)
    app = copy_app(tmp_path / "mest-fed")
    text, rounds = home.run_app(app, "loopback", settings=TWO_DEVICES)
    assert [number for number, *_ in rounds] == [0, 1, 2], text
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0], [2, 0, 0]]
    accuracies = [float(accuracy) for _, accuracy, _ in rounds]
    assert len(set(accuracies)) > 1, "the model never changed"
    (run,) = (home.folder / "runs").glob("flwr-*")
    assert f"run folder: {run}" in text
    assert {"config.toml", "rounds.jsonl", "summary.json", "model.pt", "encoding.json"} <= {
        path.name for path in run.iterdir()
    }
    # The bundle carries no second copy of the library that would hide the installed one.
    assert list(home.folder.rglob("server_app.py"))
    assert not list(home.folder.rglob("mest_fed"))
