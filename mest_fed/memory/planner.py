"""From a budget in bytes to the plan that fits of least cost."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mest_fed.catalogue import KNOBS
from mest_fed.errors import BudgetError, InputError, not_allowed
from mest_fed.memory.activations import RECOMPUTE, segments_of
from mest_fed.memory.footprint import TrainingSetup, footprint
from mest_fed.memory.plan import Plan
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.nn.norms import has_batch_statistics
from mest_fed.units import format_bytes

#: Densities that a tier may get, as shares of the target.
DENSITY_STEPS = (1.0, 0.5, 0.25, 0.125)

#: Images of a micro-batch that statistics are taken over, at least.
LEAST_FOR_STATISTICS = 8

#: Formats that are chosen unasked: bf16 needs the bytes of fp16 and is less exact, and how many
#: bytes ``mask`` needs depends on the data.
SAVED_STEPS = ("fp32", "fp16", "int8")


def cost_order(batch_statistics: bool = False) -> tuple[str, ...]:
    """Return the registered knobs, the least costly first.

    The order is by what each costs in short runs (docs/figures.md). Releasing gradients is exact
    and free. Smaller micro-batches are exact where no statistics are taken over a batch, and cost
    little time. Recomputation is exact and costs time. Fewer bits make gradients inexact. Less
    density, frozen segments and no momentum cost accuracy, in this order.

    Parameters
    ----------
    batch_statistics : bool
        Whether the model takes statistics over a micro-batch, as batch normalisation does: then
        smaller ones cost accuracy, more than 8 bits do.
    """
    order = list(KNOBS)
    if batch_statistics:
        order.remove("micro_batch")
        order.insert(order.index("saved") + 1, "micro_batch")
    return tuple(order)


@dataclass(frozen=True)
class Knob:
    """One knob: its steps, and how a step changes a shape."""

    name: str
    steps: Sequence[Any]
    pull: Callable[[TrainingShape, Any], TrainingShape]

    def step_of(self, shape: TrainingShape) -> int:
        """Return at which of its steps the knob is in a shape; 0 is what is requested.

        The last where none leads there: another knob changed the same part.
        """
        numbers = (i for i, step in enumerate(self.steps) if self.pull(shape, step) == shape)
        return next(numbers, len(self.steps) - 1)


@dataclass(frozen=True)
class PlanLimits:
    """What is requested, and how far each knob may go.

    Parameters
    ----------
    shape : TrainingShape
        The limits: density, batch, momentum and the memory options that apply in any case.
    least_micro_batch : int
        Batch statistics need several images.
    segments : int
        The model's segments, which may be recomputed, and up to two thirds of them frozen.
    fixed : frozenset of str
        Knobs that stay where the limits has them.
    sparse : bool
        Whether the model has a density.
    batch_statistics : bool
        Whether the model takes statistics over a batch, as batch normalisation does.
    """

    shape: TrainingShape
    least_micro_batch: int = 1
    segments: int = 0
    fixed: frozenset[str] = frozenset()
    sparse: bool = True
    batch_statistics: bool = False

    @classmethod
    def of(
        cls, trace: ModelTrace, shape: TrainingShape, fixed: frozenset[str] = frozenset()
    ) -> "PlanLimits":
        """Return the limits of a model: what it is decides how far each knob may go."""
        model = trace.meta_model
        statistics = has_batch_statistics(model)
        return cls(
            shape,
            least_micro_batch=LEAST_FOR_STATISTICS if statistics else 1,
            segments=len(segments_of(model, shape.memory.segments)),
            fixed=fixed,
            sparse=bool(trace.spec.groups),
            batch_statistics=statistics,
        )

    @property
    def preference(self) -> tuple[str, ...]:
        """The order of preference unless another is given."""
        return cost_order(self.batch_statistics)

    def knobs(self, preference: Sequence[str] | None = None) -> list[Knob]:
        """Return the knobs in an order of preference.

        Raises
        ------
        InputError
            If the order has not each registered knob once, or one of a user's own is wrong.
        """
        preference = self.preference if preference is None else check_order(preference)
        return [self._knob(name) for name in preference if name not in self.fixed]

    def _knob(self, name: str) -> Knob:
        made = KNOBS.build(name, self)
        if KNOBS.is_builtin(name):
            return Knob(name, *made)
        where = f"{KNOBS.key} = {name!r}"
        if not (
            isinstance(made, Sequence)
            and len(made) == 2
            and isinstance(made[0], Sequence)
            and made[0]
            and callable(made[1])
        ):
            allowed = "(steps, pull), where steps are one or more and pull(shape, step) is a shape"
            raise InputError(f"{where} gives {made!r}; allowed: {allowed}")
        steps, own = made

        def pull(shape: TrainingShape, step: Any) -> TrainingShape:
            pulled = KNOBS.call(name, own, shape, step)
            if not isinstance(pulled, TrainingShape):
                raise InputError(f"{where}: pull gives {pulled!r}; allowed: a TrainingShape")
            return pulled

        return Knob(name, steps, pull)


def check_order(preference: Sequence[str]) -> tuple[str, ...]:
    """Return an order of the planner's knobs if it is one.

    Each registered knob stands in it once, and references to a user's own beside them.

    Raises
    ------
    InputError
        If it is no such order.
    """
    given = [KNOBS.check(name) for name in preference]
    if len(set(given)) < len(given) or not {KNOBS.check(name) for name in KNOBS} <= set(given):
        allowed = f"each of {', '.join(KNOBS)} once, in any order, and references beside them"
        raise not_allowed(KNOBS.key, ", ".join(preference), allowed)
    return tuple(preference)


#: What a knob is made of: its steps, and how a step changes a shape.
Steps = tuple[Sequence[Any], Callable[[TrainingShape, Any], TrainingShape]]


def release_gradients(limits: PlanLimits) -> Steps:
    """Have the optimizer take gradients in during backward, if it can."""
    requested = limits.shape.memory.release_gradients
    steps = (False, True) if limits.shape.can_release else (False,)
    return _from(requested, steps), _saving("release_gradients")


def recompute(limits: PlanLimits) -> Steps:
    """Recompute; without segments there are none to recompute, unless that is requested."""
    steps = RECOMPUTE if limits.segments else RECOMPUTE[:-1]
    return _from(limits.shape.memory.recompute, steps), _saving("recompute")


def saved(limits: PlanLimits) -> Steps:
    """Keep activations in fewer bits."""
    return _from(limits.shape.memory.saved, SAVED_STEPS), _saving("saved")


def frozen(limits: PlanLimits) -> Steps:
    """Do not train a third of the segments, or two thirds."""
    least = limits.shape.memory.frozen
    thirds = (limits.segments // 3, 2 * limits.segments // 3)
    return [least, *(count for count in thirds if count > least)], _saving("frozen")


def micro_batch(limits: PlanLimits) -> Steps:
    """Halve the micro-batch, as long as it is large enough."""
    sizes = [limits.shape.micro_batch]
    while sizes[-1] > min(limits.least_micro_batch, limits.shape.batch):
        sizes.append(max(limits.least_micro_batch, -(-sizes[-1] // 2)))
    return sizes, _part("micro_batch")


def density(limits: PlanLimits) -> Steps:
    """Lower the density of the sparse layers."""
    steps = DENSITY_STEPS if limits.sparse else (1.0,)
    return [limits.shape.density * step for step in steps], _part("density")


def momentum(limits: PlanLimits) -> Steps:
    """Keep no momentum."""
    return _from(limits.shape.momentum, (True, False)), _part("momentum")


def _from(requested: Any, steps: Sequence[Any]) -> Sequence[Any]:
    """Return the steps from the requested one on; one that is no step stands alone."""
    return steps[steps.index(requested) :] if requested in steps else (requested,)


def _saving(name: str) -> Callable[[TrainingShape, Any], TrainingShape]:
    return lambda shape, step: replace(shape, memory=replace(shape.memory, **{name: step}))


def _part(name: str) -> Callable[[TrainingShape, Any], TrainingShape]:
    return lambda shape, step: replace(shape, **{name: step})


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
        shape = _first_fit(self.limits.shape, self.limits.knobs(preference), self._fits(room))
        if shape is None:
            raise self._nothing_fits(budget, preference)
        return self._plan_of(shape, budget)

    def smallest(self, preference: Sequence[str] | None = None) -> Plan:
        """Return the plan that needs least memory; its budget is what it needs."""
        least = min(ends(self.limits.shape, self.limits.knobs(preference)), key=self._total)
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
        for shape in shapes:
            yield self._plan_of(shape, needed(self._total(shape)))

    def _total(self, shape: TrainingShape) -> int:
        return footprint(self.trace, self.setting, shape).total

    def _fits(self, room: int) -> Callable[[TrainingShape], bool]:
        return lambda shape: self._total(shape) <= room

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

    if knob.name == "recompute":
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


def ends(shape: TrainingShape, knobs: Sequence[Knob]) -> list[TrainingShape]:
    """Pull knobs as far as they go. Recomputation in small models may cost more than it saves."""
    shapes = [shape]
    for knob in knobs:
        steps = knob.steps if knob.name == "recompute" else knob.steps[-1:]
        shapes = [knob.pull(each, step) for step in reversed(steps) for each in shapes]
    return shapes


def _some(knob: Knob) -> Sequence[object]:
    """Return all steps, or every other one where there are many."""
    return knob.steps if len(knob.steps) <= 4 else [*knob.steps[:-1:2], knob.steps[-1]]
