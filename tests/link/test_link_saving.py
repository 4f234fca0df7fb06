"""Plans of nodes whose battery runs short."""

from edge_processes import config_of

from mest_fed.link.server.saving import saving_plan
from mest_fed.task import Task


def test_it_takes_at_most_half_the_work_within_the_same_budget():
    wide = {"name": "mlp", "options": {"hidden": [512, 512]}}
    task = Task(config_of(model=wide, sparsity={"density": 0.4}))
    whole = task.plan(40_000_000, "rpi-4")
    saving = saving_plan(task, whole)
    assert (whole.density, saving.density) == (0.4, 0.1)
    assert saving.footprint.total <= whole.footprint.total <= whole.budget == saving.budget


def test_where_nothing_takes_less_the_plan_stays():
    task = Task(config_of())  # most of its work is not that of sparse layers
    whole = task.plan(2_900_000, "rpi-4")
    assert saving_plan(task, whole) == whole
