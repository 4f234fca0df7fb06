"""The plan of a node whose battery runs short: at most half the work of its budget's plan."""

from math import inf

from mest_fed.devices.step_time import StepTime
from mest_fed.errors import DeadlineError
from mest_fed.memory import Plan, TrainingShape
from mest_fed.memory.planner import Pace
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
        The same where nothing that fits takes less. Work is the time of a step on the reference
        machine (modelled); density and frozen segments are what may save of it.
    """
    clock = StepTime(task.trace, task.scheme or "dense", None, task.step_compiler)

    def share(shape: TrainingShape) -> float:
        # What has no program is nothing for a lean node.
        return clock.against(shape, whole.shape) if clock.work(shape).compiled else inf

    for most in _SHARES:
        try:
            pace = Pace(share, most)
            return task.planner().plan(whole.budget, task.config.memory.preference, pace)
        except DeadlineError:
            continue
    return whole
