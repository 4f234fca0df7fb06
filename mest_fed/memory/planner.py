"""From a budget in bytes to the plan that fits with the least expected harm."""

from collections.abc import Callable, Iterator, Sequence

from mest_fed.errors import BudgetError
from mest_fed.memory.footprint import Setting, footprint
from mest_fed.memory.levers import Lever, Wish
from mest_fed.memory.plan import Plan
from mest_fed.memory.shape import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.units import format_bytes

#: Share of a prediction that it may fall short of what is measured (docs/figures.md): a plan keeps
#: so much of its budget free.
UNCERTAINTY = 0.03

#: Other orders of preference, whose plans are the runners-up: each spares another lever.
_SPARING = ("micro_batch", "recompute", "saved", "density")


class Planner:
    """Plans for one model under one method.

    Parameters
    ----------
    trace : ModelTrace
        Of the model.
    setting : Setting
        The method, and what else is charged.
    wish : Wish
        What is wished for, and how far levers may go.
    """

    def __init__(self, trace: ModelTrace, setting: Setting, wish: Wish) -> None:
        self.trace, self.setting, self.wish = trace, setting, wish

    def plan(self, budget: int, preference: Sequence[str] | None = None) -> Plan:
        """Return the plan of least harm within a budget.

        Parameters
        ----------
        budget : int
            Bytes that training may add to the process.
        preference : sequence of str, optional
            Levers, least harm first; the wish's own by default.

        Raises
        ------
        BudgetError
            If nothing fits; the text says how many bytes would.
        InputError
            If the preference is not an order of the levers.
        """
        room = int(budget / (1 + UNCERTAINTY))
        shape = _first_fit(self.wish.shape, self.wish.levers(preference), self._fits(room))
        if shape is None:
            raise self._nothing_fits(budget)
        return self._plan_of(shape, budget)

    def smallest(self) -> Plan:
        """Return the plan that needs least memory; its budget is what it needs."""
        least = min(ends(self.wish.shape, self.wish.levers()), key=self._total)
        return self._plan_of(least, needed(self._total(least)))

    def runners_up(self, plan: Plan, preference: Sequence[str] | None = None) -> list[Plan]:
        """Return what else fits the same budget, each sparing a lever that the plan pulled.

        ``preference`` is the plan's own; to spare a lever is to put it last.
        """
        found: list[Plan] = []
        preference = self.wish.preference if preference is None else preference
        pulled = {each.name for each in self.wish.levers() if each.step_of(plan.shape)}
        for spared in (name for name in _SPARING if name in pulled):
            others = [name for name in preference if name != spared]
            try:
                other = self.plan(plan.budget, [*others, spared])
            except BudgetError:
                continue
            if other.shape != plan.shape and other not in found:
                found.append(other)
        return found

    def frontier(self) -> Iterator[Plan]:
        """Yield a plan for each step of what costs time: recomputation, format and micro-batch."""
        names = ("recompute", "saved", "micro_batch")
        levers = {lever.name: lever for lever in self.wish.levers() if lever.name in names}
        shapes = [self.wish.shape]
        for lever in levers.values():
            shapes = [lever.pull(shape, step) for shape in shapes for step in _some(lever)]
        for shape in shapes:
            yield self._plan_of(shape, needed(self._total(shape)))

    def _total(self, shape: TrainingShape) -> int:
        return footprint(self.trace, self.setting, shape).total

    def _fits(self, room: int) -> Callable[[TrainingShape], bool]:
        return lambda shape: self._total(shape) <= room

    def _plan_of(self, shape: TrainingShape, budget: int) -> Plan:
        return Plan(budget, shape, footprint(self.trace, self.setting, shape))

    def _nothing_fits(self, budget: int) -> BudgetError:
        least = self.smallest()
        return BudgetError(
            f"memory budget = {format_bytes(budget)} fits no plan; the smallest needs "
            f"{least.budget} bytes ({format_bytes(least.budget)}, modelled: density "
            f"{least.density:.4g}, micro-batch {least.micro_batch})"
        )


def needed(total: int) -> int:
    """Return the least budget in which a predicted peak fits."""
    budget = int(total * (1 + UNCERTAINTY))
    while int(budget / (1 + UNCERTAINTY)) < total:
        budget += 1
    return budget


def _first_fit(
    shape: TrainingShape, levers: Sequence[Lever], fits: Callable[[TrainingShape], bool]
) -> TrainingShape | None:
    """Choose a step for each lever, the last first: the least with which the others can fit."""
    if not levers:
        return shape if fits(shape) else None
    *earlier, lever = levers

    def can_fit(step: int) -> bool:
        pulled = lever.pull(shape, lever.steps[step])
        return any(fits(end) for end in ends(pulled, earlier))

    if lever.name == "recompute":
        step = next(filter(can_fit, range(len(lever.steps))), None)
    else:
        step = _least(len(lever.steps), can_fit)
    if step is None:
        return None
    return _first_fit(lever.pull(shape, lever.steps[step]), earlier, fits)


def _least(count: int, can_fit: Callable[[int], bool]) -> int | None:
    """Return the least step that can fit, by halving: what a lever saves grows step by step."""
    if can_fit(0):
        return 0
    low, high = 0, count - 1
    if low == high or not can_fit(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if can_fit(middle) else (middle, high)
    return high


def ends(shape: TrainingShape, levers: Sequence[Lever]) -> list[TrainingShape]:
    """Pull levers as far as they go. Recomputation in small models may cost more than it saves."""
    shapes = [shape]
    for lever in levers:
        steps = lever.steps if lever.name == "recompute" else lever.steps[-1:]
        shapes = [lever.pull(each, step) for step in reversed(steps) for each in shapes]
    return shapes


def _some(lever: Lever) -> Sequence[object]:
    """Return all steps, or every other one where there are many."""
    return lever.steps if len(lever.steps) <= 4 else [*lever.steps[:-1:2], lever.steps[-1]]
