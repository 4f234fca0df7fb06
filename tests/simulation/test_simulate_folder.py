"""The run folder, and that wrong input leaves nothing behind."""

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_run import start, tiny_config

from mest_fed.data import save_partitions
from mest_fed.errors import BudgetError, InputError
from mest_fed.server.folder_names import CLIENTS, ROUNDS
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.settings import preset_names, resolve


def test_a_folder_that_holds_anything_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"--out .* is not empty; allowed: a new folder, or --resume"
    ):
        start(tmp_path, tiny_config())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_will_do(tmp_path):
    RunFolder.create(tmp_path, tiny_config())
    assert (tmp_path / "config.toml").exists()


def test_of_two_runs_that_found_a_folder_empty_one_gets_it(tmp_path, monkeypatch):
    RunFolder.create(tmp_path, tiny_config())
    before = (tmp_path / "config.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(()))  # as the other one saw it
    with pytest.raises(InputError, match=r"cannot be used: .*File exists"):
        RunFolder.create(tmp_path, tiny_config(run={"seed": 2}))
    assert (tmp_path / "config.toml").read_text(encoding="utf-8") == before


def test_rows_of_earlier_versions_have_their_metrics_by_name(tmp_path):
    folder = RunFolder.create(tmp_path / "run", tiny_config())
    old = {"round": 0, "accuracy": 0.5, "loss": None}
    folder.logs.append(ROUNDS, [old, {"round": 1, "metrics": {"perplexity": 2.0}}])
    first, second = folder.logs.read(ROUNDS)
    assert first == old | {"metrics": {"accuracy": 0.5}}
    assert second["metrics"] == {"perplexity": 2.0}


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be used"):
        start(path, tiny_config())
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"name": "cifar10", "path": "/nowhere"}}, "data.path"),
        ({"fleet": {"devices": 5000}}, "fleet.devices = 5000 is not allowed; allowed: 1 to 1438"),
        ({"fleet": {"mix": "toaster:1"}}, "toaster is no device profile"),
        ({"fleet": {"mix": "none.toml:1"}}, "none.toml"),
        ({"fleet": {"budgets": "rpi-5:1MB"}}, "fleet.budgets names rpi-5"),
        ({"fleet": {"budgets": "rpi-4:20kB"}}, r"the smallest needs \d+ bytes"),
        ({"data": {"partition_file": "/nowhere.npz"}}, "data.partition_file = '/nowhere.npz'"),
        ({"data": {"partition": "shard", "shards_per_partition": 9999}}, "shards_per_partition"),
        ({"sparsity": {"scheme": "pattern", "density": 0.5}}, "density = 0.5"),
    ],
)
def test_wrong_input_leaves_no_folder(tmp_path, sections, message):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        start(folder, tiny_config(**sections))
    assert not folder.exists()


@pytest.mark.soak
def test_a_budget_that_nothing_fits_says_what_would(tmp_path):
    with pytest.raises(BudgetError) as caught:
        start(tmp_path / "run", tiny_config(fleet={"budgets": "rpi-4:20kB"}))
    needed = int(str(caught.value).partition("the smallest needs ")[2].split()[0])
    run, server = {"rounds": 1}, {"clients_per_round": 1}
    enough = tiny_config(run=run, server=server, fleet={"budgets": f"rpi-4:{needed}"})
    start(tmp_path / "run", enough)


@pytest.mark.parametrize("parts", [3, 7])
def test_a_partition_file_of_another_number_of_devices(tmp_path, parts):
    path = tmp_path / "p.npz"
    save_partitions(path, np.array_split(np.arange(1000), parts))
    with pytest.raises(InputError, match=f"has {parts} partitions; allowed: 12"):
        start(tmp_path / "run", tiny_config(data={"partition_file": str(path)}))


def test_a_partition_file_is_used(tmp_path):
    path = tmp_path / "p.npz"
    parts = np.array_split(np.arange(600), 12)
    save_partitions(path, parts)
    config = tiny_config(run={"rounds": 1}, data={"partition_file": str(path), "hold_out": 0.0})
    folder = RunFolder(start(tmp_path / "run", config))
    assert {row["examples"] for row in folder.logs.read(CLIENTS)} == {50}


def test_rows(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.logs.read(ROUNDS) == []
    folder.logs.append(ROUNDS, [{"round": 1, "x": 0.1}, {"round": 2, "x": None}])
    folder.logs.append(ROUNDS, [{"round": 3, "x": "ü"}])
    folder.logs.append(CLIENTS, [{"round": 1}, {"round": 3}])
    assert [row["x"] for row in folder.logs.read(ROUNDS)] == [0.1, None, "ü"]
    sizes = {ROUNDS: [len('{"round": 1, "x": 0.1}\n')], CLIENTS: [0]}
    folder.logs.cut_to({"logs": sizes})
    assert [row["round"] for row in folder.logs.read(ROUNDS)] == [1]
    assert folder.logs.read(CLIENTS) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.logs.append(ROUNDS, [{"x": float("nan")}])


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.logs.append(ROUNDS, [{"round": 1}])
    with (tmp_path / ROUNDS).open("a", encoding="utf-8") as file:
        file.write('{"round": 2, "acc')
    assert folder.logs.read(ROUNDS) == [{"round": 1}]


def test_presets_are_valid_and_named():
    assert "quickstart" in preset_names()
    for name in preset_names():
        got, config = resolve(name, None, [])
        assert got == name
        assert config.run.rounds >= 1
    assert resolve(None, None, []) == resolve("quickstart", None, [])


def test_settings_come_last(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nrounds = 3\nseed = 8\n", encoding="utf-8")
    name, config = resolve(None, path, ["run.rounds=7"])
    assert (name, config.run.rounds, config.run.seed) == ("mine", 7, 8)


def test_the_source_of_an_error_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nrounds = 0\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.rounds = 0 is not allowed \(.*mine\.toml\)"):
        resolve(None, path, ["run.rounds=7"])
    with pytest.raises(InputError, match=r"run\.rounds = 0 is not allowed \(--set\)"):
        resolve("quickstart", None, ["run.rounds=0"])
    with pytest.raises(
        InputError, match=r"--preset = 'nothing' is not allowed; allowed: .*quickstart"
    ):
        resolve("nothing", None, [])


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_all_files_of_a_run_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = start(tmp_path / "run", tiny_config(run={"rounds": 1}))
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"partitions.npz", "model.pt", "lock"} <= {path.name for path in files}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~umask)}
