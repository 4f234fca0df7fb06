"""From a budget in bytes to the plan that fits of least cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mest_fed.errors import BudgetError, DeadlineError
from mest_fed.memory.footprint import at_least, footprint, is_compiled
from mest_fed.memory.knobs import OF_PROGRAMS, Knob, PlanLimits
from mest_fed.memory.plan import Plan
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.memory.training_setup import TrainingSetup
from mest_fed.units import format_bytes, format_seconds

#: Share of a prediction that it may fall short of what is measured (docs/figures.md): a plan keeps
#: so much of its budget free.
UNCERTAINTY = 0.03

#: Other orders of preference, whose plans are the runners-up: each spares another knob.
_SPARING = ("micro_batch", "recompute", "saved", "density")


#: Two rounds that differ by less, relatively, are equally fast.
_AS_FAST = 0.01

Fits = Callable[[TrainingShape], bool]


@dataclass(frozen=True)
class Pace:
    """How soon a device shall be done with a round.

    Parameters
    ----------
    seconds : callable
        Gives what a round takes by a shape (modelled); asked often for the same one.
    deadline : float
        Seconds.
    called : str
        What a person calls the deadline.
    """

    seconds: Callable[[TrainingShape], float]
    deadline: float
    called: str = "deadline"

    def met_by(self, shape: TrainingShape) -> bool:
        """Say whether a round takes no longer."""
        return self.seconds(shape) <= self.deadline


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
        self._totals: dict[TrainingShape, int] = {}

    def plan(
        self, budget: int, preference: Sequence[str] | None = None, pace: Pace | None = None
    ) -> Plan:
        """Return the least costly plan within a budget, and a deadline if there is one.

        Parameters
        ----------
        budget : int
            Bytes that training may add to the process.
        preference : sequence of str, optional
            Knobs, the least costly first; by default those of the limits.
        pace : Pace, optional
            When a round shall be done; without one it takes as long as it takes.

        Raises
        ------
        BudgetError
            If nothing fits; the text says how many bytes would.
        DeadlineError
            If nothing that fits is fast enough; the text says what the fastest takes.
        InputError
            If the preference is not an order of the knobs.
        """
        fits = self._fits(budget)
        shape = self._of_budget(fits, preference)
        if shape is None:
            raise self._nothing_fits(budget, preference)
        if pace is not None and not pace.met_by(shape):
            faster = self._in_time(fits, preference, pace)
            if faster is None:
                raise self._nothing_is_fast_enough(budget, preference, pace, shape)
            shape = faster
        return self._plan_of(shape, budget)

    def _of_budget(self, fits: Fits, preference: Sequence[str] | None) -> TrainingShape | None:
        """Return the least costly shape that fits."""
        wished = self.limits.shape
        return wished if fits(wished) else _first_fit(wished, self.limits.knobs(preference), fits)

    def _in_time(
        self, fits: Fits, preference: Sequence[str] | None, pace: Pace
    ) -> TrainingShape | None:
        """Return the least costly shape that fits and is fast enough."""
        knobs = self.limits.knobs(preference)
        return _first_in_time(
            self.limits.shape, knobs, fits, pace, self._fastest_steps(knobs, pace)
        )

    def _fastest_steps(self, knobs: Sequence[Knob], pace: Pace) -> dict[str, object]:
        wished = self.limits.shape
        return {
            knob.name: min(knob.steps, key=lambda step: pace.seconds(knob.pull(wished, step)))
            for knob in knobs
        }

    def smallest(self, preference: Sequence[str] | None = None) -> Plan:
        """Return the plan that needs least memory; its budget is what it needs."""
        last = ends(self.limits.shape, self.limits.knobs(preference))
        least = min(filter(self._worthwhile, last), key=self._total)
        return self._plan_of(least, needed(self._total(least)))

    def runners_up(
        self, plan: Plan, preference: Sequence[str] | None = None, pace: Pace | None = None
    ) -> list[Plan]:
        """Return what else fits the same budget, each sparing a knob that the plan pulled.

        ``preference`` and ``pace`` are the plan's own; to spare a knob is to put it last. What is
        too slow is left out.
        """
        found: list[Plan] = []
        preference = self.limits.preference if preference is None else preference
        pulled = {each.name for each in self.limits.knobs(preference) if each.step_of(plan.shape)}
        fits = self._fits(plan.budget)
        for spared in (name for name in _SPARING if name in pulled):
            order = [*(name for name in preference if name != spared), spared]
            shape = self._of_budget(fits, order)
            if shape is not None and pace is not None and not pace.met_by(shape):
                shape = self._in_time(fits, order, pace)
            if shape is None or shape == plan.shape:
                continue
            other = self._plan_of(shape, plan.budget)
            if other not in found:
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
        if shape not in self._totals:
            self._totals[shape] = footprint(self.trace, self.setting, shape).total
        return self._totals[shape]

    def _worthwhile(self, shape: TrainingShape) -> bool:
        """Say whether a shape is no other's with less exact numbers: bf16 packed by torch, unasked.

        Where torch packs, fp16 needs the same bytes.
        """
        saved = shape.memory.saved
        if saved != OF_PROGRAMS or saved == self.limits.shape.memory.saved:
            return True
        return is_compiled(self.trace, self.setting, shape)

    def _fits(self, budget: int) -> Fits:
        """Return whether shapes fit; cheap bounds come first."""
        room = int(budget / (1 + UNCERTAINTY))

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
            f"{least.density:.4g}, micro-batch {least.micro_batch})",
            least.budget,
        )

    def _nothing_is_fast_enough(
        self, budget: int, preference: Sequence[str] | None, pace: Pace, slow: TrainingShape
    ) -> DeadlineError:
        found = self._fastest(self._fits(budget), preference, pace, slow)
        least = pace.seconds(found)
        return DeadlineError(
            f"{pace.called} = {format_seconds(pace.deadline)} is met by no plan within the memory "
            f"budget = {format_bytes(budget)}; the fastest takes {format_seconds(least)} a round "
            f"(modelled: density {found.density:.4g}, micro-batch {found.micro_batch})"
        )

    def _fastest(
        self, fits: Fits, preference: Sequence[str] | None, pace: Pace, slow: TrainingShape
    ) -> TrainingShape:
        """Return the fastest shape that fits; ``slow`` is one that does."""
        knobs, found = self.limits.knobs(preference), self.limits.shape
        fastest = self._fastest_steps(knobs, pace)
        for knob in knobs:
            found = knob.pull(found, fastest[knob.name])
        if fits(found):
            return found
        faster: TrainingShape | None = slow
        while faster is not None:
            found, least = faster, pace.seconds(faster)
            faster = self._in_time(fits, preference, Pace(pace.seconds, least * (1 - _AS_FAST)))
        return found


def needed(total: int) -> int:
    """Return the least budget in which a predicted peak fits."""
    budget = int(total * (1 + UNCERTAINTY))
    while int(budget / (1 + UNCERTAINTY)) < total:
        budget += 1
    return budget


def _first_fit(shape: TrainingShape, knobs: Sequence[Knob], fits: Fits) -> TrainingShape | None:
    """Choose a step for each knob, the last first: the least with which the others can fit."""
    if not knobs:
        return shape if fits(shape) else None
    *earlier, knob = knobs

    def can_fit(step: int) -> bool:
        pulled = knob.pull(shape, knob.steps[step])
        return any(fits(end) for end in ends(pulled, earlier))

    if knob.extremes or knob.uneven:
        step = next(filter(can_fit, range(len(knob.steps))), None)
    else:
        step = _least(len(knob.steps), can_fit)
    if step is None:
        return None
    return _first_fit(knob.pull(shape, knob.steps[step]), earlier, fits)


def _first_in_time(
    shape: TrainingShape,
    knobs: Sequence[Knob],
    fits: Fits,
    pace: Pace,
    fastest: Mapping[str, object],
) -> TrainingShape | None:
    """Choose a step for each knob, the last first: the least with which the others can do both.

    What spares memory may cost time, so that the others may still fail: then it is the next step.

    Parameters
    ----------
    fastest : mapping
        Of each knob the step with which rounds are fastest, whatever the others are at.
    """
    if not knobs:
        return shape if pace.met_by(shape) and fits(shape) else None
    *earlier, knob = knobs
    for step in knob.steps:
        pulled = soonest = knob.pull(shape, step)
        for other in earlier:
            soonest = other.pull(soonest, fastest[other.name])
        if not pace.met_by(soonest):
            continue
        if not (fits(pulled) or any(fits(end) for end in ends(pulled, earlier))):
            continue
        found = _first_in_time(pulled, earlier, fits, pace, fastest)
        if found is not None:
            return found
    return None


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
