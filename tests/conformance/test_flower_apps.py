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
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.ray,
]
logging.getLogger("flwr").setLevel(logging.ERROR)

HERE = Path(__file__).parent
APPS = HERE.parent / "flower_apps"
NAMES = ("numpy_app", "torch_app", "mods_app")


@pytest.fixture(scope="module", params=NAMES)
def flowers(request, tmp_path_factory):
    """The name of an app, and what it ends with on Flower's own engine."""
    file = tmp_path_factory.mktemp("flower") / "found.json"
    command = [sys.executable, str(HERE / "flower_app_engine.py"), str(file)]
    command.append(str(APPS / request.param))
    # Left to itself, Flower's engine joins a cluster that another test has on this machine.
    alone = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        command, env=alone, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(file.read_text())[request.param]


def ended(out):
    """Return what strategies and the ServerApp ended with: metrics, and hashes of arrays."""
    summary = json.loads((out / "summary.json").read_text())
    return {key: summary[key] for key in ("results", "server_state", "server_arrays")}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_app_ends_with_the_same_bits(workers, flowers, tmp_path):
    name, found = flowers
    AppRun.of(read_project(APPS / name), None, tmp_path / "run").run(workers)
    gc.collect()  # what Ray left open is closed here, where that is no error
    assert ended(tmp_path / "run") == found


def test_an_app_learns_and_its_clients_keep_their_states(flowers):
    name, found = flowers
    if name == "numpy_app":
        assert found["server_state"]["loss"] < 10
        return
    metrics = found["results"][0]["metrics"]
    if name == "torch_app":
        assert metrics["server"]["2"]["accuracy"] > metrics["server"]["0"]["accuracy"]
    else:
        # Three of four nodes train in each of three rounds, and all evaluate after each.
        last = metrics["evaluate"]["3"]
        assert 1 < last["trained"] < 3
        assert last["seen"] == pytest.approx(last["trained"] + 3)
