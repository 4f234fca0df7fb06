"""From a budget in bytes to the plan that fits of least cost."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from mest_fed.errors import BudgetError
from mest_fed.memory.footprint import TrainingSetup, at_least, footprint, is_compiled
from mest_fed.memory.knobs import OF_PROGRAMS, Knob, PlanLimits
from mest_fed.memory.plan import Plan
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.units import format_bytes

#: Share of a prediction that it may fall short of what is measured (docs/figures.md): a plan keeps
#: so much of its budget free.
UNCERTAINTY = 0.03

#: Other orders of preference, whose plans are the runners-up: each spares another knob.
_SPARING = ("micro_batch", "recompute", "saved", "density")


class Planner:
    """Plans for one model under one method.

    Parameters
    ----------
    trace : ModelTrace
        Of the model.
    setting : TrainingSetup
        The method, and what else is charged.
    limits : PlanLimits
        What is requested, and how far knobs may go.
    """

    def __init__(self, trace: ModelTrace, setting: TrainingSetup, limits: PlanLimits) -> None:
        self.trace, self.setting, self.limits = trace, setting, limits

    def plan(self, budget: int, preference: Sequence[str] | None = None) -> Plan:
        """Return the least costly plan within a budget.

        Parameters
        ----------
        budget : int
            Bytes that training may add to the process.
        preference : sequence of str, optional
            Knobs, the least costly first; by default those of the limits.

        Raises
        ------
        BudgetError
            If nothing fits; the text says how many bytes would.
        InputError
            If the preference is not an order of the knobs.
        """
        room = int(budget / (1 + UNCERTAINTY))
        knobs, fits = self.limits.knobs(preference), self._fits(room)
        wished = self.limits.shape
        shape = wished if fits(wished) else _first_fit(wished, knobs, fits)
        if shape is None:
            raise self._nothing_fits(budget, preference)
        return self._plan_of(shape, budget)

    def smallest(self, preference: Sequence[str] | None = None) -> Plan:
        """Return the plan that needs least memory; its budget is what it needs."""
        last = ends(self.limits.shape, self.limits.knobs(preference))
        least = min(filter(self._worthwhile, last), key=self._total)
        return self._plan_of(least, needed(self._total(least)))

    def runners_up(self, plan: Plan, preference: Sequence[str] | None = None) -> list[Plan]:
        """Return what else fits the same budget, each sparing a knob that the plan pulled.

        ``preference`` is the plan's own; to spare a knob is to put it last.
        """
        found: list[Plan] = []
        preference = self.limits.preference if preference is None else preference
        pulled = {each.name for each in self.limits.knobs(preference) if each.step_of(plan.shape)}
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
        knobs = {knob.name: knob for knob in self.limits.knobs() if knob.name in names}
        shapes = [self.limits.shape]
        for knob in knobs.values():
            shapes = [knob.pull(shape, step) for shape in shapes for step in _some(knob)]
        for shape in filter(self._worthwhile, shapes):
            yield self._plan_of(shape, needed(self._total(shape)))

    def _total(self, shape: TrainingShape) -> int:
        return footprint(self.trace, self.setting, shape).total

    def _worthwhile(self, shape: TrainingShape) -> bool:
        """Say whether a shape is no other's with less exact numbers: bf16 packed by torch, unasked.

        Where torch packs, fp16 needs the same bytes.
        """
        saved = shape.memory.saved
        if saved != OF_PROGRAMS or saved == self.limits.shape.memory.saved:
            return True
        return is_compiled(self.trace, self.setting, shape)

    def _fits(self, room: int) -> Callable[[TrainingShape], bool]:
        """Return whether shapes fit; cheap bounds come first."""

        def fits(shape: TrainingShape) -> bool:
            if not self._worthwhile(shape):
                return False
            bounded = self.setting.compiler is not None
            if bounded and at_least(self.trace, self.setting, shape) > room:
                return False
            return self._total(shape) <= room

        return fits

    def _plan_of(self, shape: TrainingShape, budget: int) -> Plan:
        return Plan(budget, shape, footprint(self.trace, self.setting, shape))

    def _nothing_fits(self, budget: int, preference: Sequence[str] | None) -> BudgetError:
        least = self.smallest(preference)
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
    shape: TrainingShape, knobs: Sequence[Knob], fits: Callable[[TrainingShape], bool]
) -> TrainingShape | None:
    """Choose a step for each knob, the last first: the least with which the others can fit."""
    if not knobs:
        return shape if fits(shape) else None
    *earlier, knob = knobs

    def can_fit(step: int) -> bool:
        pulled = knob.pull(shape, knob.steps[step])
        return any(fits(end) for end in ends(pulled, earlier))

    if knob.extremes:
        step = next(filter(can_fit, range(len(knob.steps))), None)
    else:
        step = _least(len(knob.steps), can_fit)
    if step is None:
        return None
    return _first_fit(knob.pull(shape, knob.steps[step]), earlier, fits)


def _least(count: int, can_fit: Callable[[int], bool]) -> int | None:
    """Return the least step that can fit, by halving: what a knob saves grows step by step."""
    if can_fit(0):
        return 0
    low, high = 0, count - 1
    if low == high or not can_fit(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if can_fit(middle) else (middle, high)
    return high


def ends(shape: TrainingShape, knobs: Sequence[Knob]) -> Iterator[TrainingShape]:
    """Pull knobs as far as they go: one of the shapes needs least memory."""
    for steps in product(*(knob.ends for knob in knobs)):
        end = shape
        for knob, step in zip(knobs, steps, strict=True):
            end = knob.pull(end, step)
        yield end


def _some(knob: Knob) -> Sequence[object]:
    """Return all steps, or every other one where there are many."""
    return knob.steps if len(knob.steps) <= 4 else [*knob.steps[:-1:2], knob.steps[-1]]
