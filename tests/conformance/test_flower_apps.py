"""Apps in the manner of Flower's templates: the same bits on Flower's engine and on ours."""

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mest_fed.simulation.flower_app.project import read_project
from mest_fed.simulation.flower_app.run import AppRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
]
logging.getLogger("flwr").setLevel(logging.ERROR)

HERE = Path(__file__).parent
APPS = HERE.parent / "flower_apps"
NAMES = ("torch_app", "numpy_app", "mods_app")


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    file = tmp_path_factory.mktemp("flower") / "found.json"
    script = str(HERE / "flower_app_engine.py")
    command = [sys.executable, script, str(file), *(str(APPS / name) for name in NAMES)]
    # Left to itself, Flower's engine joins a cluster that another test has on this machine.
    alone = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        command, env=alone, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def ended(out):
    """Return what strategies and the ServerApp ended with: metrics, and hashes of arrays."""
    summary = json.loads((out / "summary.json").read_text())
    return {key: summary[key] for key in ("results", "server_state", "server_arrays")}


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in NAMES), ("torch_app", 2), ("mods_app", 2)]
)
def test_an_app_ends_with_the_same_bits(name, workers, flowers, tmp_path):
    AppRun.of(read_project(APPS / name), None, tmp_path / "run").run(workers)
    gc.collect()  # what Ray left open is closed here, where that is no error
    assert ended(tmp_path / "run") == flowers[name]


def test_the_apps_learn_and_clients_keep_their_states(flowers):
    torch_app = flowers["torch_app"]["results"][0]["metrics"]
    assert torch_app["server"]["2"]["accuracy"] > torch_app["server"]["0"]["accuracy"]
    assert flowers["numpy_app"]["server_state"]["loss"] < 10
    last = flowers["mods_app"]["results"][0]["metrics"]["evaluate"]["3"]
    # Three of four nodes train in each of three rounds, and all evaluate after each.
    assert 1 < last["trained"] < 3
    assert last["seen"] == pytest.approx(last["trained"] + 3)
