"""Runs whose devices train narrower models, or fewer layers: they learn, resume, and are the same.

Each is given budgets that only its own knob meets.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_run import (
    StopAfter,
    assert_same_on_workers,
    assert_same_run,
    read_rows,
    read_summary,
    start,
    tiny_config,
)

from mest_fed.memory.footprint import footprint
from mest_fed.memory.planner import needed
from mest_fed.simulation.rounds import Interrupted
from mest_fed.task import Task

DEVICES = ("rpi-4", "jetson-nano", "rpi-zero-2w")


def preferring(knob):
    others = "release_gradients, micro_batch, recompute, saved, density, frozen, momentum"
    return {"prefer": ", ".join([knob, *(it for it in others.split(", ") if it != knob)])}


FORMS = {
    "widths": {"sparsity": {"method": "heterofl"}, "memory": preferring("density")},
    "freezing": {"sparsity": {"method": "dense"}, "memory": preferring("frozen")},
    "forward-only": {
        "model": {"name": "mlp"},
        "sparsity": {"method": "static", "scheme": "unstructured", "density": 0.1},
        "training": {"gradient": "zeroth-order", "learning_rate": 0.02, "local_epochs": 3},
        "memory": preferring("micro_batch"),
        "wire": {"slopes": True},
    },
}
#: By how much the loss falls from the first round to the last, at least: with probes, slowly.
FALLS = {"widths": 0.5, "freezing": 0.5, "forward-only": 0.95}
SECTIONS = {
    "run": {"rounds": 6},
    "model": {"name": "resnet8", "width": 1.0},
    "data": {"partition": "iid"},
    "training": {"local_epochs": 2, "learning_rate": 0.1},
    "server": {"clients_per_round": 6, "evaluate_clients_every": 0},
    "behaviour": {"availability": "always"},
}


def shapes_of(form, planner):
    wished = planner.limits.shape
    if form == "widths":
        return [replace(wished, density=share) for share in (1.0, 0.5, 0.25)]
    if form == "forward-only":
        return [replace(wished, micro_batch=count) for count in (32, 4, 1)]
    return [replace(wished, memory=replace(wished.memory, frozen=count)) for count in (0, 1, 3)]


def config_of(form, **more):
    """Return a configuration whose three kinds of devices have budgets for three shapes."""
    sections = {**SECTIONS, **FORMS[form], **more}
    task = Task(tiny_config(**sections))
    planner = task.planner()
    shapes = shapes_of(form, planner)
    sizes = [needed(footprint(task.trace, planner.setting, it).total) for it in shapes]
    budgets = ", ".join(f"{name}:{size}" for name, size in zip(DEVICES, sizes, strict=True))
    fleet = {"devices": 12, "mix": ", ".join(f"{it}:1" for it in DEVICES), "budgets": budgets}
    return tiny_config(**sections, fleet=fleet), shapes


@pytest.fixture(scope="module", params=FORMS)
def case(request, tmp_path_factory):
    """Return a form, its configuration and shapes, and the folder of a whole run."""
    config, shapes = config_of(request.param)
    folder = start(tmp_path_factory.mktemp("forms") / "whole", config)
    return SimpleNamespace(form=request.param, config=config, shapes=shapes, folder=folder)


def test_budgets_are_met_by_the_form_alone_and_the_run_learns(case):
    plans = Task(case.config).fleet_plans()
    assert [plans[device].shape for device in DEVICES] == case.shapes
    rows = read_rows(case.folder, "rounds")
    assert rows[-1]["train_loss"] < FALLS[case.form] * rows[1]["train_loss"]
    summary = read_summary(case.folder)
    assert case.form == "forward-only" or summary["final_accuracy"] > 0.8
    assert summary["clients_failed"] == summary["over_budget"] == 0


def test_a_resumed_run_ends_with_the_same_bits(case, tmp_path):
    with pytest.raises(Interrupted):
        start(tmp_path / "run", case.config, display=StopAfter(2))
    assert_same_run(start(tmp_path / "run", resume=True), case.folder)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_workers_ends_with_the_same_bits(session, form, workers, tmp_path):
    config, _ = config_of(form, run={"rounds": 2})
    serial = start(tmp_path / "serial", config)
    assert_same_on_workers(serial, workers, tmp_path / "parallel")
