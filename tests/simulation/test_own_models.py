"""Runs of models that are no part of mest-fed, from a folder of their own, and of their weights."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from tiny_run import read_summary, start, tiny_config, tiny_table

from mest_fed.cli import main
from mest_fed.errors import BudgetError, InputError
from mest_fed.nn import to_dense
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.simulation.settings import resolve
from mest_fed.simulation.simulate import open_run
from mest_fed.task import Task

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a folder with a configuration and the files of its model, data and task."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("own_nets.py", "own_sizes.py", "own_study.py"):
        shutil.copy(HERE / name, folder)
    table = tiny_table(run={"rounds": 2}, sparsity={"density": 0.4})
    table["model"] = {"name": "own_nets.py:build", "options": {"depth": 2}}
    table["data"] = {"name": "own_study.py:columns", "partition": "iid"}
    table["task"] = {"name": "own_study.py:Brightness", "options": {"distance": 0.2}}
    (folder / "own.toml").write_text(tomli_w.dumps(table))
    return folder


@pytest.fixture(scope="module")
def run(own, tmp_path_factory):
    """Return the folder of a run in this process."""
    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    _, config = resolve(None, own / "own.toml", [])
    start(folder, config)
    return folder


@pytest.mark.soak
def test_model_data_and_task_are_used_together(run, own):
    state = torch.load(run / "model.pt", weights_only=True)
    assert [name for name in state if name.endswith("weight")] == [
        f"{number}.weight" for number in (0, 1, 3, 5, 8)
    ]
    assert read_summary(run)["achieved_density"] == pytest.approx(0.4, abs=0.05)
    assert (state["3.weight"] == 0).float().mean() > 0.4
    summary = read_summary(run)
    assert (summary["task"], summary["primary_metric"]["name"]) == (
        f"{own}/own_study.py:Brightness",
        "near",
    )
    assert 0 < summary["final_metrics"]["near"] <= 1


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_started_elsewhere_give_the_same_bits(own, run, tmp_path):
    command = [Path(sys.executable).parent / "mest-fed", "simulate", "--config", own / "own.toml"]
    done = subprocess.run(
        [*command, "--workers", "2", "--out", "run", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_summary(tmp_path / "run")["model_sha256"] == read_summary(run)["model_sha256"]


def test_our_model_from_a_users_file_gives_the_same_bits(own, tmp_path):
    given = {"run": {"rounds": 1}, "model": {"width": 0.25}}
    start(tmp_path / "ours", tiny_config(**given))
    given["model"]["name"] = f"{own}/own_nets.py:ours"
    start(tmp_path / "theirs", tiny_config(**given))
    ours, theirs = (read_summary(tmp_path / name)["model_sha256"] for name in ("ours", "theirs"))
    assert ours == theirs


@pytest.mark.parametrize("source", ["", "model.pt"])
def test_a_run_starts_from_an_earlier_one(own, run, source):
    _, config = resolve(None, own / "own.toml", [f"model.weights={run / source}"])
    state = to_dense(Task(config).build_model()).state_dict()
    for name, tensor in torch.load(run / "model.pt", weights_only=True).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor), name


def test_settings_alone_that_name_a_model_need_no_budgets(own):
    """The quickstart's are those of its own model."""
    setting = f"model.name={own}/own_nets.py:wide"
    name, config = resolve(None, None, [setting])
    assert name == "plain"
    assert {plan.density for plan in Task(config).fleet_plans().values()} == {0.1}
    _, config = resolve("quickstart", None, [setting, "model.width=1", "training.engine=torch"])
    with pytest.raises(BudgetError):
        Task(config).fleet_plans()
    assert resolve(None, None, ["data.name=digits"])[0] == "plain"
    assert resolve(None, None, ["run.rounds=2"])[0] == "quickstart"


def test_model_data_and_task_by_settings_alone(own, tmp_path, monkeypatch):
    study = own / "own_study.py"
    named = {"model.name": f"{study}:net", "data.name": f"{study}:columns"}
    named |= {"task.name": f"{study}:Brightness", "run.rounds": 1}
    settings = [part for key, it in named.items() for part in ("--set", f"{key}={it}")]
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    command = ["mest-fed", "simulate", "--workers", "0", "--quiet", *settings]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    summary = read_summary(tmp_path / "runs" / "plain")
    assert (summary["preset"], summary["clients_trained"]) == ("plain", 4)
    assert summary["achieved_density"] == pytest.approx(0.1, abs=0.01)


def test_a_model_whose_backward_pass_raises_is_one_line(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\n\n\n"
        "class InPlace(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x).exp().mul_(2)\n\n\n"
        "def net(shape, classes):\n"
        "    return InPlace(torch.nn.Flatten(), torch.nn.Linear(64, classes))\n"
    )
    named = [f"model.name={tmp_path}/nets.py:net", "sparsity.method=dense"]
    _, config = resolve(None, None, named)
    with pytest.raises(
        InputError, match=r"nets\.py:net' cannot be trained, its backward"
    ) as raised:
        open_run("own", config, tmp_path / "run", resume=False)
    assert "modified by an inplace operation" in str(raised.value)
    assert "\n" not in str(raised.value)
