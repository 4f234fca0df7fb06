"""Runs of things that are no part of mest-fed, one of each kind, from a user's own file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from cli_output import without_phases
from tiny_run import StopAfter, read_rows, read_summary, start, tiny_table

import mest_fed.devices
from mest_fed.cli import main
from mest_fed.config import RunConfig, named, named_files, read_toml
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.statistics import tasks_by_device
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.settings import resolve
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.simulation.trackers.trackers import open_trackers

HERE = Path(__file__).parent
#: Section -> key -> name in own_things.py.
OWN = {
    "data": {"name": "some_digits", "partition": "in_turn", "augmentation": "negative"},
    "model": {"name": "net"},
    "sparsity": {"method": "Restless", "scheme": "Pairs", "distribution": "halves"},
    "task": {"name": "Guesses"},
    "training": {"schedule": "falling", "optimizer": "Descent"},
    "wire": {"upload": "Halves", "download": "Halves"},
    "server": {
        "selection": "FirstOnes",
        "optimizer": "HalfWay",
        "mode": "Rounds",
        "weighting": "squared",
    },
    "behaviour": {"availability": "Everybody", "charging": "often_plugged"},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a folder with a configuration and the files that it refers to by their names."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("own_things.py", "own_helpers.py", "own_script.py"):
        shutil.copy(HERE / name, folder)
    tables = {
        section: {key: f"own_things.py:{name}" for key, name in keys.items()}
        for section, keys in OWN.items()
    }
    tables["behaviour"]["battery"] = True
    tables["sparsity"]["density"] = 0.4
    tables["run"] = {"rounds": 2}
    del tables["model"]["name"]
    table = tiny_table(**tables)
    table["model"] = {"name": "own_things.py:net"}
    (folder / "own.toml").write_text(tomli_w.dumps(table))
    return folder


@pytest.fixture(scope="module")
def run(own, tmp_path_factory):
    """Return the folder of a run in this process, started from elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder.parent)
        _, config = resolve(None, own / "own.toml", [])
        trackers = open_trackers([f"{own}/own_things.py:Lines"], folder)
        start(folder, config, display=Observers(*trackers))
    return folder


def test_each_kind_is_used(run, own):
    rows = [row for row in read_rows(run, "clients") if row["status"] == "ok"]
    assert [row["partition"] for row in rows] == [0, 1, 2] * 2
    assert {row["examples"] for row in rows} == {108}  # in turn: 1437 / 12, a tenth held out
    summary = read_summary(run)
    assert summary["achieved_density"] == pytest.approx(0.2, abs=0.02)
    assert (run / "lines.txt").read_text() == f"tiny {own}/own_things.py:FirstOnes\n0\n1\n2\n"


def test_the_run_keeps_absolute_references(run, own):
    table = read_toml(run / "config.toml")
    for section, keys in OWN.items():
        for key, name in keys.items():
            assert table[section][key] == f"{own}/own_things.py:{name}"
    closed = {
        "sparsity.mutation",
        "sparsity.growth",
        "training.device",
        "training.engine",
        "training.gradient",
        "memory.recompute",
        "server.keep",
    }
    others = {"model.norm", "memory.saved"}  # ours are named there
    assert {f"{section}.{key}" for section, keys in OWN.items() for key in keys} == (
        set(named()) - closed - others
    )


def test_a_run_is_resumed_from_elsewhere(own, run, tmp_path, monkeypatch):
    _, config = resolve(None, own / "own.toml", [])
    with pytest.raises(Interrupted):
        start(tmp_path / "run", config, display=StopAfter(1))
    monkeypatch.chdir(tmp_path)
    start(tmp_path / "run", resume=True)
    assert read_summary(tmp_path / "run")["model_sha256"] == read_summary(run)["model_sha256"]


def test_the_files_that_a_configuration_refers_to(own):
    _, config = resolve(None, own / "own.toml", [])
    assert named_files(config) == [own / "own_things.py"]
    assert named_files(RunConfig()) == []


@pytest.mark.soak
@pytest.mark.ray
def test_workers_find_what_a_script_registers(own, run, tmp_path):
    done = subprocess.run(
        [sys.executable, own / "own_script.py", tmp_path / "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_summary(tmp_path / "run")["model_sha256"] == read_summary(run)["model_sha256"]
    table = read_toml(tmp_path / "run" / "config.toml")
    assert table["server"]["selection"] == f"{own}/own_script.py:Mine"


WRONG = """
import numpy as np

def fails(*args, **options):
    raise KeyError("nothing there")

def nothing(*args, **options):
    return None

def twice(labels, count):
    return [np.arange(5)] * count

def beyond(labels, count):
    return [np.array([len(labels) + number]) for number in range(count)]

def growing(progress):
    return float("nan")

class Ours:
    number = 0

value = 7
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return a function that runs with a setting, and returns the one line that it costs."""
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny_table()))
    monkeypatch.chdir(tmp_path)

    def run(setting):
        options = ("--config", "tiny.toml", "--workers", "0", "--out", "run", "--set", setting)
        monkeypatch.setattr(sys, "argv", ["mest-fed", "simulate", *options])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        err = without_phases(err)
        assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "run").exists()
        return err, file

    return run


@pytest.mark.soak
@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("model.name", "fails", "KeyError: 'nothing there' ({file}:5)"),
        ("model.name", "nothing", "gives None; allowed: what gives a torch.nn.Module"),
        ("model.name", "value", "is an int; allowed: a function or class"),
        ("model.name", "absent", "has no attribute 'absent'"),
        ("data.name", "fails", "KeyError: 'nothing there' ({file}:5)"),
        ("data.name", "nothing", "returned None; allowed: (train, test)"),
        ("data.partition", "fails", "KeyError"),
        ("data.partition", "twice", "gives an example twice"),
        ("data.partition", "beyond", "gives the position"),
        ("sparsity.method", "nothing", "gives None; allowed: what gives a mest_fed.sparsity"),
        ("sparsity.scheme", "fails", "KeyError: 'nothing there' ({file}:5)"),
        ("sparsity.distribution", "fails", "KeyError"),
        ("data.augmentation", "fails", "KeyError: 'nothing there' ({file}:5)"),
        ("training.schedule", "growing", "gives nan at 0; allowed: a number from 0 on"),
        ("wire.upload", "nothing", "gives None; allowed: what gives a mest_fed.wire"),
        ("server.selection", "nothing", "gives None; allowed: what gives a mest_fed.server"),
        ("server.optimizer", "fails", "KeyError"),
        ("server.mode", "nothing", "gives None; allowed: what gives a mest_fed.server"),
        ("server.mode", "absent", "has no attribute 'absent'"),
        ("behaviour.availability", "fails", "KeyError"),
    ],
)
def test_a_thing_that_is_wrong_costs_one_line(key, name, words, refused):
    err, file = refused(f"{key}=wrong.py:{name}")
    assert err.startswith(f"error: {key}" if key != "wire.upload" else "error: wire.upload or")
    assert str(file) in err
    assert words.format(file=file) in err


def test_a_profile_beside_the_configuration_is_one_device_in_all_files(tmp_path, monkeypatch):
    board = Path(mest_fed.devices.__file__).parent / "profiles" / "rpi-4.toml"
    shutil.copy(board, tmp_path / "board.toml")
    table = tiny_table(run={"rounds": 1}, fleet={"mix": "board.toml:1"})
    (tmp_path / "own.toml").write_text(tomli_w.dumps(table))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, config = resolve(None, tmp_path / "own.toml", [])
    run = load_run(start(tmp_path / "run", config))
    assert [tier.profile for tier in run.summary.tiers] == ["board"]
    assert {task.device for task in run.tasks} == {"board"}
    (group,) = tasks_by_device(run)
    assert group.title == run.summary.tiers[0].title
