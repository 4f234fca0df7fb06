"""Plans that fit as measured: a plan whose measured peak is over its budget is made anew.

A prediction can fall short of what is measured, by most in percent where a net is small. What it
fell short by is then left free of the budget, a plan made in the rest, and measured in its turn. If
none fits there, the plan that needs least memory is tried. Plans are made anew before the first
round alone: checkpoints have those that a run trains with, and so does what its devices are told.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mest_fed.errors import BudgetError
from mest_fed.memory import Plan
from mest_fed.memory.planner import needed
from mest_fed.simulation.peak_measurement import Peaks
from mest_fed.task import Task
from mest_fed.units import format_bytes

#: How often a plan is made anew, at most: the last time that which needs least memory.
TRIES = 3


@dataclass
class Refit:
    """The plan of one or more kinds of device, and what was made of it.

    Parameters
    ----------
    devices : list of str
        Names of the kinds, which have one budget and one plan.
    tried : list of Plan
        The first plan, then those that were made anew.
    fits : bool
        Whether the last one's measured peak is within the budget.
    """

    devices: list[str]
    tried: list[Plan]
    fits: bool = False

    def try_another(self, task: Task, peaks: Mapping[Plan, int]) -> bool:
        """Make the next plan; say whether there is another to try.

        The last one is that which needs least memory, whatever predictions fall short by.
        """
        last = self.tried[-1]
        if last not in peaks:  # its measurement failed
            return False
        shortfall = max(last.shortfall, peaks[last] - last.footprint.total)
        try:
            if len(self.tried) == TRIES:
                raise BudgetError("enough was tried")
            plan = task.plan(last.budget - shortfall, self.devices[0])
        except BudgetError:
            plan = task.planner().smallest(task.config.memory.preference)
        if plan.footprint.total >= last.footprint.total:
            return False
        self.tried.append(replace(plan, budget=last.budget, shortfall=shortfall))
        return True

    def judge(self, peaks: Mapping[Plan, int]) -> None:
        """Take the measured peak of the last plan; without one it does not count as fitting."""
        last = self.tried[-1]
        self.fits = last in peaks and peaks[last] <= last.budget

    def in_words(self, peaks: Mapping[Plan, int]) -> str:
        """Say in a line what was found, and what was done."""
        first, last = self.tried[0], self.tried[-1]
        text = (
            f"{', '.join(self.devices)}: the plan's measured peak, {format_bytes(peaks[first])}, "
            f"is over the budget of {format_bytes(first.budget)} "
            f"({format_bytes(first.footprint.total)} was predicted)"
        )
        if self.fits:
            return (
                f"{text}; planned anew: density {last.density:.4g}, micro-batch "
                f"{last.micro_batch}, predicted {format_bytes(last.footprint.total)}, measured "
                f"{format_bytes(peaks[last])}"
            )
        least = min((it for it in self.tried if it in peaks), key=lambda it: peaks[it])
        enough = max(peaks[least], needed(least.footprint.total))
        return f"{text}; no plan fits, so its tasks fail; a budget of {enough} bytes would do"


def over_budget(plans: Mapping[str, Plan], peaks: Mapping[Plan, int]) -> list[Refit]:
    """Return what is to be made anew: each plan whose measured peak is over its budget."""
    over: dict[Plan, Refit] = {}
    for name, plan in plans.items():
        if peaks.get(plan, 0) > plan.budget:
            over.setdefault(plan, Refit([], [plan])).devices.append(name)
    return list(over.values())


def refit(task: Task, over: Iterable[Refit], peaks: Peaks) -> None:
    """Make plans anew until their measured peaks are within their budgets, or none is left.

    Parameters
    ----------
    task : Task
        The run's.
    over : iterable of Refit
        Plans whose measured peaks are over their budgets.
    peaks : Peaks
        Has measured them, and measures what is tried.
    """
    left = list(over)
    for _ in range(TRIES):
        measured = peaks.wait()
        left = [each for each in left if each.try_another(task, measured)]
        if not left:
            return
        peaks.add(each.tried[-1] for each in left)
        measured = peaks.wait()
        for each in left:
            each.judge(measured)
        left = [each for each in left if not each.fits]


def fitted(plans: Mapping[str, Plan], refits: Iterable[Refit]) -> dict[str, Plan]:
    """Return plans with those that were made anew and fit."""
    anew = {name: each.tried[-1] for each in refits if each.fits for name in each.devices}
    return {**plans, **anew}
