"""``flwr run .`` on Flower's own simulation engine."""

import shutil
from pathlib import Path

import pytest
from flower_processes import FlowerHome, copy_app, is_open
from tiny_run import read_summary, start

from mest_fed.config import from_table

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


@pytest.mark.soak
def test_fewer_nodes_than_devices(tmp_path, home):
    app = copy_app(tmp_path / "mest-fed")
    settings = (*SETTINGS[:1], "fleet.devices=3", *SETTINGS[2:])
    text, rounds = home.run_app(app, *FEDERATION, settings=settings)
    assert rounds[1:] == [], text
    assert "every node refused to take part: num-partitions = 2 is not allowed" in text


def study(place):
    """Return the tables of a run of own_study.py, imported from a place."""
    return {
        "run": {"rounds": 2},
        "model": {"name": f"{place}:net"},
        "data": {"name": f"{place}:columns", "partition": "iid"},
        "task": {"name": f"{place}:Brightness"},
        "sparsity": {"density": 0.4},
        "training": {"device": "cpu"},
        "server": {"clients_per_round": 2, "min_nodes": 2, "evaluate_clients_every": 0},
        "fleet": {"devices": 2, "mix": "laptop:1"},
        "behaviour": {"availability": "always"},
    }


@pytest.mark.soak
def test_a_users_model_data_and_task_in_the_bundle(tmp_path, home):
    """They come to the same weights as in one process of the fleet engine."""
    app, own = copy_app(tmp_path / "mest-fed"), Path(__file__).parent / "own_study.py"
    shutil.copy(own, app / "clients" / "my_study.py")
    tables = study("clients.my_study") | {"deployment": {"folder": str(tmp_path / "run")}}
    settings = [f"{at}.{key}={it!r}" for at, keys in tables.items() for key, it in keys.items()]
    text, rounds = home.run_app(app, *FEDERATION, settings=settings)
    assert [counts for *_, counts in rounds] == [[0, 0, 0], [2, 0, 0], [2, 0, 0]], text
    start(tmp_path / "here", from_table(study(own), "test"))
    ours, here = (read_summary(tmp_path / name) for name in ("run", "here"))
    assert ours["final_metrics"] == here["final_metrics"]
    assert ours["model_sha256"] == here["model_sha256"]
