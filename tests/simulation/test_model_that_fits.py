"""A model that some device trains all of: studies choose it, runs say where none does."""

from dataclasses import replace

import pytest
from tiny_run import start, tiny_config

from mest_fed.memory.footprint import footprint
from mest_fed.memory.planner import needed
from mest_fed.simulation.fleet import Fleet
from mest_fed.simulation.study.budgets import StudyForecasts, budgeted
from mest_fed.task import Task

PREFERENCE = "density, release_gradients, micro_batch, recompute, saved, frozen, momentum"
METHODS = {
    "sparse": {"method": "static", "density": 0.4},
    "widths": {"method": "heterofl"},
}


def config_of(name, **fleet):
    return tiny_config(
        sparsity=METHODS[name],
        model={"name": "resnet8", "width": 1.0},
        memory={"prefer": PREFERENCE},
        fleet={"devices": 6, "mix": "rpi-4:1", **fleet},
    )


def budget_for(config, share):
    """Return bytes in which a share of the model trains in whole batches, and no larger one."""
    task = Task(config)
    planner = task.planner()
    shape = replace(planner.limits.shape, density=share * task.density)
    return needed(footprint(task.trace, planner.setting, shape).total)


@pytest.mark.parametrize("name", METHODS)
def test_a_study_has_a_model_as_large_as_its_devices_train(name):
    given = config_of(name)
    found = budgeted(given, budget_for(given, 0.5), StudyForecasts())
    before, after = Task(given), Task(found)
    (plan,) = after.fleet_plans().values()
    assert plan.density == after.density
    if name == "widths":
        assert found.model.width < given.model.width
    else:
        assert found.sparsity.density < given.sparsity.density
        assert after.density < before.density
    assert Fleet.of(after).nobody_trains(after) is None


def test_a_budget_that_holds_no_plan_is_left_to_the_run():
    given = config_of("sparse")
    assert budgeted(given, 1000, StudyForecasts()).sparsity == given.sparsity


def test_a_run_says_what_nobody_trains(tmp_path):
    whole = config_of("sparse")
    task = Task(whole)
    assert Fleet.of(task).nobody_trains(task) is None
    small = config_of("sparse", budgets=f"rpi-4:{budget_for(whole, 0.5)}")
    task = Task(small)
    reason = Fleet.of(task).nobody_trains(task)
    assert reason == (
        "no device trains more than 0.5 of the sparse weights of sparsity.density = 0.4: the "
        "others stay in the model as they began; the largest plan is that of sparsity.density = 0.2"
    )
    folder = start(tmp_path / "run", small)
    assert reason in (folder / "run.log").read_text()
