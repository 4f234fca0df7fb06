"""The plan of a node whose battery runs short: at most half the work of its budget's plan."""

from functools import cache

from mest_fed.devices import program_step_work, train_seconds
from mest_fed.devices.cost import REFERENCE
from mest_fed.errors import DeadlineError
from mest_fed.memory import Plan, TrainingShape
from mest_fed.memory.footprint import peak_granules
from mest_fed.memory.planner import Pace
from mest_fed.sparsity import Static
from mest_fed.task import Task

#: Shares of the work that are tried in turn. Where not even the last can be had, the plan stays.
_SHARES = (0.5, 0.75)


def saving_plan(task: Task, whole: Plan) -> Plan:
    """Return the plan of least harm within a plan's budget that takes about half of its work.

    Parameters
    ----------
    task : Task
        The run's.
    whole : Plan
        What the device trains by while its battery is full.

    Returns
    -------
    Plan
        The same where nothing that fits takes less: work is what a step takes on the reference
        machine (modelled), and density and frozen segments are what may save of it.
    """
    seconds = cache(lambda shape: _seconds(task, shape))
    most = seconds(whole.shape)
    for share in _SHARES:
        pace = Pace(seconds, share * most, "the share of a saving plan")
        try:
            return task.planner().plan(whole.budget, task.config.memory.preference, pace)
        except DeadlineError:
            continue
    return whole


def _seconds(task: Task, shape: TrainingShape) -> float:
    """Return what a step takes (modelled); what has no program is nothing for a lean node."""
    planner = task.planner()
    trace, compiler = planner.trace.of_density(shape.density), planner.setting.compiler
    # At the target density, and not at a method's peak, which lasts for a part of the run.
    model = trace.at(peak_granules(trace, Static(), shape))
    step = None if compiler is None else compiler(model, shape)
    if step is None:
        return float("inf")
    work = program_step_work(step.program).of_batch(shape.batch, step.program.examples)
    return train_seconds(REFERENCE, work, task.scheme or "dense")
