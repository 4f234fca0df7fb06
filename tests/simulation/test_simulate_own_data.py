"""Runs on data that a user brings: by a loader, by files, by person; on workers, too."""

import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from cli_output import without_phases
from tiny_run import read_rows, read_summary, tiny_config

from mest_fed import cli
from mest_fed.client.memory_guard import prepare
from mest_fed.config import from_flat, from_table, to_flat, to_toml, with_settings
from mest_fed.data import load_dataset, load_partitions
from mest_fed.errors import InputError
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.task import Task
from mest_fed.task_trials import try_settings

COMMAND = [sys.executable, "-c", "from mest_fed.cli import main; main()"]
LOADER = """
import numpy as np
from sizes import SIDE


def load(path, *, examples=120, persons=6):
    generator = np.random.default_rng(3)

    def part(count):
        targets = np.arange(count) % 4
        noise = generator.integers(0, 60, (count, 1, SIDE, SIDE))
        pixels = (noise + 60 * targets[:, None, None, None]).astype(np.uint8)
        return pixels, targets, [f"person {n % persons}" for n in range(count)]

    return part(examples), part(24)


def wrong(path):
    raise OSError("no such sensor")
"""
SETTINGS = """
[run]
rounds = 2
[model]
width = 0.25
[sparsity]
density = 0.2
[training]
batch_size = 8
[data]
name = "my_data.py:load"
partition = "groups"
[data.options]
examples = 60
[fleet]
devices = 6
mix = "rpi-4:1"
[server]
clients_per_round = 3
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a loader and a configuration that names it; their folder is not the current one."""
    monkeypatch.setenv("MEST_FED_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sizes.py").write_text("SIDE = 8\n")
    (folder / "my_data.py").write_text(LOADER)
    (folder / "run.toml").write_text(SETTINGS)
    return folder / "run.toml"


@pytest.fixture
def simulate(monkeypatch, capsys, config):
    """Return what runs the command in this process: (out, settings) -> (status, error)."""
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))

    def run(out, *settings):
        changes = [part for setting in settings for part in ("--set", setting)]
        options = ("--workers", "0", "--quiet", "--config", str(config), "--out", str(out))
        monkeypatch.setattr(sys, "argv", ["mest-fed", "simulate", *options, *changes])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, capsys.readouterr().err

    return run


@pytest.mark.soak
def test_a_loader_of_a_users_own(simulate, tmp_path, config):
    assert simulate(tmp_path / "run") == (0, "")
    summary = read_summary(tmp_path / "run")
    assert summary["dataset"] == f"{config.parent / 'my_data.py'}:load"
    assert summary["final_accuracy"] is not None
    encoding = json.loads((tmp_path / "run" / "encoding.json").read_text())
    assert (encoding["shape"], encoding["num_classes"]) == ([1, 8, 8], 4)
    # Each of 6 persons has 10 examples, of which 1 is held out.
    assert {row["examples"] for row in read_rows(tmp_path / "run", "clients")} == {9}


@pytest.mark.soak
@pytest.mark.ray
def test_workers_get_the_data_that_the_loader_gave(simulate, tmp_path, config):
    """Two workers find the weights that this process finds; the loader runs in no worker."""
    assert simulate(tmp_path / "here") == (0, "")
    done = subprocess.run(
        [
            *(*COMMAND, "simulate", "--workers", "2", "--quiet"),
            *("--config", str(config), "--out", str(tmp_path / "there")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    key = "model_sha256"
    assert read_summary(tmp_path / "here")[key] == read_summary(tmp_path / "there")[key]


@pytest.mark.soak
def test_a_table_by_person(simulate, tmp_path, config):
    rows = [f"p{n % 5}," + ",".join(str((n * k) % 17) for k in range(64)) for n in range(100)]
    lines = [f"{row},{'ab'[n % 2]}" for n, row in enumerate(rows)]
    header = ",".join(["person", *(f"x{k}" for k in range(64)), "label"])
    (tmp_path / "table.csv").write_text("\n".join([header, *lines]))
    status = simulate(
        tmp_path / "run",
        *("data.name=csv", f"data.path={tmp_path / 'table.csv'}", "data.options={shape='1x8x8'}"),
        *("data.partition=column:person", "fleet.devices=5"),
    )
    assert status == (0, "")
    parts = load_partitions(tmp_path / "run" / "partitions.npz")
    assert (len(parts), sum(map(len, parts))) == (5, 80)
    assert {row["examples"] for row in read_rows(tmp_path / "run", "clients")} <= set(range(12, 18))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.name=my_data.py:load"], "no such file"),  # relative to the current folder
        (["data.options.people=3"], "data.options.people = 3 is not allowed; allowed: examples"),
        (["data.options=3"], "data.options = 3 is not allowed"),
        (["fleet.devices=7"], "fleet.devices = 7 is not allowed; allowed: 1 to 6, the number of g"),
        (["data.partition=column:person"], "are for files; allowed with data.name"),
        (["data.name=digits", "data.options={}"], "data.partition needs the group of each example"),
        (["data.name=digits"], "data.options.examples = 60 is not allowed; allowed: nothing with"),
        (["data.name=csv", "data.path=none"], "/none' is not allowed; allowed: a file or folder"),
        (["data.name=cvs"], "data.name = 'cvs' is not allowed"),
    ],
)
def test_wrong_data_is_one_line(simulate, tmp_path, settings, words):
    out = tmp_path / "runs" / "wrong"
    status, error = simulate(out, *settings)
    assert status == 2
    assert words in error
    assert without_phases(error).count("\n") == 1
    assert not out.parent.exists()


def test_a_loader_that_raises_is_one_line(simulate, tmp_path, config):
    config.write_text(SETTINGS.replace(":load", ":wrong").replace("examples = 60", ""))
    status, error = simulate(tmp_path / "run")
    assert status == 2
    assert "OSError: no such sensor" in error
    assert f"{config.parent / 'my_data.py'}:19)" in error
    assert not (tmp_path / "run").exists()


def test_numbers_are_not_shared_out_by_class(simulate, tmp_path, config):
    np.savez(tmp_path / "a.npz", inputs=np.ones((50, 1, 8, 8)), targets=np.arange(50) / 3)
    settings = ("data.name=npz", f"data.path={tmp_path / 'a.npz'}", "data.options={}")
    status, error = simulate(tmp_path / "run", *settings, "data.partition=dirichlet")
    assert status == 2
    assert "targets of shape (n, 1) are no classes; allowed: (n,), or task.name" in error
    settings += ("task.name=regression", "data.partition=dirichlet")
    status, error = simulate(tmp_path / "run", *settings)
    assert status == 2
    assert "data.partition = 'dirichlet' shares examples out by class" in error


def test_augmentation_is_for_images(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.ones((50, 8)), targets=np.arange(50) % 2)
    data = {"name": "npz", "path": str(tmp_path / "a.npz"), "augmentation": "crop-flip"}
    task = Task(tiny_config(data=data))
    with pytest.raises(
        InputError, match="'crop-flip' is for images; allowed for inputs of 8: none"
    ):
        try_settings(task)


def test_a_task_finds_shape_and_classes_in_the_data(tmp_path):
    generator = np.random.default_rng(0)
    windows = generator.normal(size=(60, 3, 20))
    np.savez(tmp_path / "a.npz", inputs=windows, targets=np.arange(60) % 5)
    data = {"name": "npz", "path": str(tmp_path / "a.npz"), "partition": "iid"}
    task = Task(tiny_config(data=data))
    assert (task.example.input_shape, task.example.num_outputs) == ((3, 20), 5)
    assert sum(task.num_examples(number) for number in range(12)) == 50
    prepare(task, 3)


def test_an_encoding_stands_for_the_data(tmp_path):
    """A server or device without the run's data knows shape and classes from ``encoding.json``."""
    np.savez(tmp_path / "a.npz", inputs=np.ones((60, 3, 20)), targets=np.arange(60) % 5)
    encoding = load_dataset("npz", str(tmp_path / "a.npz")).encoding
    (tmp_path / "encoding.json").write_text(json.dumps(encoding.as_table(), indent=2))
    data = {"name": "npz", "path": "nowhere.npz", "encoding": "encoding.json"}
    config = from_table({"data": data}, "test", tmp_path)
    example = Task(from_flat(to_flat(config))).example
    assert (example.input_shape, example.num_outputs) == ((3, 20), 5)
    with pytest.raises(InputError, match=r"data\.encoding = 'no\.json' is not allowed"):
        from_table({"data": {"encoding": "no.json"}}, "test", tmp_path)


def test_options_are_text_where_flower_wants_scalars():
    table = {
        "data": {"options": {"length": 7, "tokens": "words"}, "columns": {"inputs": ["a", "b"]}}
    }
    config = from_table(table, "test")
    flat = to_flat(config)
    assert json.loads(flat["data.options"]) == {"length": 7, "tokens": "words"}
    assert from_flat(flat) == config == from_table(tomllib.loads(to_toml(config)), "again")
    changed = from_table(
        with_settings(config.model_dump(), ["data.options.length=9", "data.columns.groups=who"]),
        "test",
    )
    assert json.loads(changed.data.options) == {"length": 9, "tokens": "words"}
    assert json.loads(changed.data.columns) == {"inputs": ["a", "b"], "groups": "who"}
