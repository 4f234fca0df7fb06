"""Runs whose task is not classification: by name, and one of a user's own; what ends them early."""

import gc
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_run import (
    StopAfter,
    assert_same_run,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

from mest_fed.cli import main
from mest_fed.data.arrays import ExampleSpec
from mest_fed.errors import InputError
from mest_fed.simulation.report import write_report
from mest_fed.simulation.rounds import Interrupted
from mest_fed.task import Task

REGRESSION = {"task": {"name": "regression"}, "training": {"learning_rate": 0.01}}

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
#: The task that the documentation shows: the digit itself, as a number, within a distance.
OWN = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


@pytest.fixture
def own_task(tmp_path):
    """Return what writes a file with a task of one's own, and names it."""

    def write(extra=""):
        path = tmp_path / "elsewhere" / "my_task.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(OWN + textwrap.indent(textwrap.dedent(extra), "    "))
        return f"{path}:Task"

    return write


@pytest.mark.soak
def test_a_regression_from_rows_to_report(tmp_path):
    folder = start(tmp_path / "run", tiny_config(**REGRESSION))
    summary, rounds = read_summary(folder), read_rows(folder, "rounds")
    assert [row["metrics"].keys() for row in rounds] == [
        {"mse", "mae", "loss"},
        set(),
        {"mse", "mae", "loss"},
        {"mse", "mae", "loss"},
    ]
    last = rounds[-1]
    assert last["metrics"]["mse"] == pytest.approx(last["metrics"]["loss"], rel=1e-5)
    assert last["accuracy"] is None
    assert last["loss"] == last["metrics"]["loss"]
    assert last["client_metrics"]["mae"]["min"] <= last["client_metrics"]["mae"]["median"]
    assert summary["task"] == "regression"
    assert summary["final_metrics"] == last["metrics"]
    assert summary["final_accuracy"] is None
    assert summary["primary_metric"]["name"] == "mse"
    assert last["metrics"]["mse"] < rounds[0]["metrics"]["mse"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Mse over rounds" in page
    assert "Lower is better" in page
    assert f"whose mse is {summary['final_metrics']['mse']:.4g} on the central test set" in page
    assert "accuracy" not in page.split('id="settings"')[0].lower().replace("label-accuracy", "")


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["sync", "buffered"])
def test_a_run_stops_early_and_a_report_says_so(tmp_path, mode):
    server = {
        "stop_when": "accuracy >= 0.01",
        "evaluate_every": 1,
        "mode": mode,
        "clients_per_round": 3,
        "concurrency": 3,
        "buffer": 2,
    }
    folder = start(tmp_path / "run", tiny_config(run={"rounds": 9, "seed": 5}, server=server))
    summary = read_summary(folder)
    assert summary["rounds"] == read_rows(folder, "rounds")[-1]["round"] == 1
    assert summary["stopped"].endswith("after round 1")
    assert summary["achieved_density"] == pytest.approx(0.2, abs=0.01)
    assert "The run ended early: accuracy was" in write_report(folder).read_text(encoding="utf-8")


KEEPS_BEST = {
    "run": {"rounds": 6, "seed": 5},
    "training": {"learning_rate": 0.5, "schedule": "constant"},
    "server": {
        "keep": "best",
        "stop_when": "no improvement of accuracy in 2 rounds",
        "evaluate_every": 1,
        "clients_per_round": 3,
    },
}


@pytest.mark.soak
def test_the_best_model_is_kept_and_a_resumed_run_keeps_the_same(tmp_path):
    config = tiny_config(**KEEPS_BEST)
    whole = start(tmp_path / "whole", config)
    summary, rounds = read_summary(whole), read_rows(whole, "rounds")
    best = max(rounds, key=lambda row: (row["accuracy"], -row["round"]))
    assert summary["best_round"] == summary["kept_round"] == best["round"]
    assert summary["kept"] == "best"
    assert summary["final_accuracy"] == summary["final_metrics"]["accuracy"]
    with pytest.raises(Interrupted):
        start(tmp_path / "cut", config, display=StopAfter(2))
    resumed = start(tmp_path / "cut", resume=True)
    assert_same_run(whole, resumed)


def test_a_run_that_was_killed_after_it_stopped_is_finished_by_a_resume(tmp_path):
    server = {"stop_when": "loss <= 9", "keep": "best", "evaluate_every": 1}
    config = tiny_config(run={"rounds": 5, "seed": 5}, server=server)
    whole = start(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        start(tmp_path / "cut", config, display=StopAfter(1))
    resumed = start(tmp_path / "cut", resume=True)
    assert read_summary(resumed)["rounds"] == 1
    assert_same_run(whole, resumed)


def test_a_task_of_ones_own(tmp_path, own_task):
    task = {"name": own_task(), "options": {"distance": 2.0}}
    config = tiny_config(**REGRESSION | {"task": task})
    folder = start(tmp_path / "run", config)
    summary = read_summary(folder)
    assert summary["final_metrics"].keys() == {"within", "loss"}
    assert 0 <= summary["final_metrics"]["within"] <= 1
    assert summary["clients_failed"] == 0


#: Sequences in which each token follows the one before, and rows whose labels are their signs.
THINGS = """
    import numpy as np
    from torch import nn

    def sequences(path):
        start = np.arange(240).reshape(-1, 1) % 12
        tokens = (start + np.arange(9)) % 12
        return tuple((part[:, :-1], part[:, 1:]) for part in (tokens[40:], tokens[:40]))

    def rows(path):
        values = np.random.default_rng(0).normal(size=(240, 6)).astype(np.float32)
        labels = (values[:, :3] > 0).astype(np.int64)
        return (values[40:], labels[40:]), (values[:40], labels[:40])

    class Next(nn.Module):
        def __init__(self, shape, vocabulary):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, 16)
            self.hidden, self.output = nn.Linear(16, 32), nn.Linear(32, vocabulary)

        def forward(self, tokens):
            return self.output(self.hidden(self.embedding(tokens)).relu())

    def linear(shape, outputs):
        return nn.Sequential(nn.Linear(shape[0], 32), nn.ReLU(), nn.Linear(32, outputs))
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("task", "data", "model", "metrics"),
    [
        ("next-token", "sequences", "Next", {"perplexity", "accuracy", "loss"}),
        ("multi-label", "rows", "linear", {"f1", "label-accuracy", "loss"}),
        ("regression", "rows", "linear", {"mse", "mae", "loss"}),
    ],
)
def test_tasks_on_data_and_models_of_ones_own(tmp_path, task, data, model, metrics):
    file = tmp_path / "things.py"
    file.write_text(textwrap.dedent(THINGS))
    config = tiny_config(
        run={"rounds": 6, "seed": 1},
        task={"name": task},
        data={"name": f"{file}:{data}", "partition": "iid"},
        model={"name": f"{file}:{model}", "width": 1.0},
        sparsity={"scheme": "unstructured", "density": 0.5},
        training={"batch_size": 8, "local_epochs": 2, "learning_rate": 0.1},
        behaviour={"availability": "always"},
    )
    folder = start(tmp_path / "run", config)
    summary, rounds = read_summary(folder), read_rows(folder, "rounds")
    assert summary["clients_failed"] == summary["clients_rejected"] == 0
    assert summary["final_metrics"].keys() == metrics
    assert summary["final_metrics"]["loss"] < 0.95 * rounds[0]["metrics"]["loss"]
    if task == "next-token":
        perplexity = summary["final_metrics"]["perplexity"]
        assert perplexity == pytest.approx(math.exp(summary["final_metrics"]["loss"]))
        assert summary["final_accuracy"] == summary["final_metrics"]["accuracy"]
    write_report(folder)


def test_a_loss_that_is_no_number_on_some_clients_fails_those_alone(tmp_path, own_task):
    extra = """
        def total_loss(self, outputs, targets):
            import torch
            zeros = (targets == 0).sum() > 10
            spoiled = torch.where(zeros & torch.is_grad_enabled(), float("nan"), 1.0)
            return super().total_loss(outputs, targets) * spoiled
    """
    config = tiny_config(**REGRESSION | {"task": {"name": own_task(extra)}})
    folder = start(tmp_path / "run", config)
    rows = read_rows(folder, "clients")
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert len(failed) < len(rows)
    for row in failed:
        assert row["failure"] == "not-finite"
        place = rf"client {row['partition']}, round {row['round']}: batch [1-9]"
        assert re.search(place, row["reason"])
        assert "losses() returned nan" in row["reason"]
        assert "\n" not in row["reason"]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"task": {"name": "regresion"}}, "task.name = 'regresion' is not allowed"),
        ({"task": {"name": "nowhere.py:Task"}}, "nowhere.py"),
        ({"task": {"name": "multi-label"}}, "task.name = 'multi-label': targets of 1 dimensions"),
        ({"task": {"name": "next-token"}}, "task.name = 'next-token': outputs .* next-token task"),
        (
            {"task": {"name": "regression"}, "forgetting": {"fraction": 0.2}},
            "forgetting.fraction = 0.2 is not allowed with task.name = 'regression', which does",
        ),
        ({"server": {"stop_when": "mse <= 1"}}, "names 'mse', which the task has not"),
    ],
)
def test_a_wrong_task_is_refused_before_there_is_a_folder(tmp_path, sections, reason):
    with pytest.raises(InputError, match=reason) as caught:
        start(tmp_path / "run", tiny_config(**sections))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"server": {"stop_when": "accuracy > 1"}}, "server.stop_when = 'accuracy > 1' is not"),
        ({"server": {"keep": "all"}}, "server.keep = 'all' is not allowed"),
        ({"task": {"options": "[1]"}}, "task.options = .* is not allowed"),
        (
            {
                "server": {
                    "keep": "best",
                    "central_evaluation": False,
                    "evaluate_clients_every": 0,
                }
            },
            "server.keep = 'best' needs evaluations",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(sections, reason):
    with pytest.raises(InputError, match=reason):
        tiny_config(**sections)


def test_without_central_evaluation_the_clients_decide(tmp_path):
    server = {
        "central_evaluation": False,
        "evaluate_clients_every": 1,
        "evaluate_clients": 3,
        "clients_per_round": 3,
        "stop_when": "loss <= 9",
        "keep": "best",
    }
    summary = read_summary(start(tmp_path / "run", tiny_config(server=server)))
    assert (summary["rounds"], summary["kept_round"]) == (1, 1)
    assert summary["final_metrics"] == {}
    assert summary["final_client_accuracy"] is not None


def test_the_command_says_what_went_wrong_in_one_line(tmp_path, own_task, capsys, monkeypatch):
    broken = own_task("def losses(self, outputs, targets):\n    return outputs.mean()\n")
    folder = tmp_path / "run"
    arguments = ["--workers", "0", "--out", str(folder), "--set", f"task.name={broken}"]
    monkeypatch.setattr(sys, "argv", ["mest-fed", "simulate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "losses() returned shape ()" in message
    assert "allowed: (32,)" in message.replace("\n", " ")
    assert not folder.exists()


@pytest.mark.soak
@pytest.mark.ray
def test_a_task_of_ones_own_on_two_workers_gives_the_same_bits(tmp_path, own_task):
    name = own_task()
    config = tiny_config(**REGRESSION | {"task": {"name": name}})
    here = read_summary(start(tmp_path / "here", config))
    (tmp_path / "run.toml").write_text((tmp_path / "here" / "config.toml").read_text())
    script = Path(sys.executable).with_name("mest-fed")
    command = [str(script), "simulate", "--workers", "2", "--quiet"]
    command += [
        "--config",
        "run.toml",
        "--out",
        "there",
        "--set",
        "task.name=elsewhere/my_task.py:Task",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    gc.collect()
    assert done.returncode == 0, done.stderr
    there = read_summary(tmp_path / "there")
    assert there["model_sha256"] == here["model_sha256"]
    assert there["final_metrics"] == here["final_metrics"]


@pytest.mark.parametrize(
    ("outputs", "target_shape", "batch"), [(10, (), 256), (32_000, (128,), 4), (10**8, (), 1)]
)
def test_an_evaluation_takes_fewer_examples_where_each_has_many_outputs(
    outputs, target_shape, batch
):
    task = Task(tiny_config())
    vars(task)["example"] = ExampleSpec((8,), outputs, target_shape=target_shape)
    assert task.evaluation_batch == batch
