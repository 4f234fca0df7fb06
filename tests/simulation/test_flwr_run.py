"""``flwr run .`` on Flower's own simulation engine."""

import pytest
from flower_processes import FlowerHome, copy_app, is_open

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

#: Where ``flwr run`` starts, or finds, a SuperLink of this machine.
LOCAL_SUPERLINK = 39091
SETTINGS = (
    "run.rounds=2",
    "fleet.devices=2",
    "model.width=0.25",
    "server.min_nodes=2",
    "server.clients_per_round=2",
)
FEDERATION = ("--federation-config", "num-supernodes=2 client-resources-num-cpus=1")


@pytest.fixture
def home(tmp_path):
    if is_open(LOCAL_SUPERLINK):
        pytest.skip("another local SuperLink is running")
    with FlowerHome(tmp_path / "home") as home:
        yield home
    assert not is_open(LOCAL_SUPERLINK)


@pytest.mark.soak
def test_two_rounds(tmp_path, home):
    app = copy_app(tmp_path / "mest-fed")
    text, rounds = home.run_app(app, *FEDERATION, settings=SETTINGS)
    assert [number for number, *_ in rounds] == [0, 1, 2], text
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0], [2, 0, 0]]
    assert "median" in text  # clients evaluate after the last round


def test_a_users_model_in_the_bundle(tmp_path, home):
    app = copy_app(tmp_path / "mest-fed")
    net = "nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, n))"
    (app / "clients" / "my_nets.py").write_text(
        f"from torch import nn\n\n\ndef build(shape, n):\n    return {net}\n"
    )
    settings = [it for it in SETTINGS if not it.startswith(("model.", "run."))]
    settings += ["model.name='clients.my_nets:build'", "run.rounds=1"]
    text, rounds = home.run_app(app, *FEDERATION, settings=settings)
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0]], text
