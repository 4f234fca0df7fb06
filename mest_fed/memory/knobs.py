"""The knobs of the planner: what a plan may give up, in which steps, and in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mest_fed.catalogue import KNOBS
from mest_fed.errors import InputError, not_allowed
from mest_fed.memory.activations import RECOMPUTE, segments_of
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.nn.norms import has_batch_statistics

#: Densities that a tier may get, as shares of the target.
DENSITY_STEPS = (1.0, 0.5, 0.25, 0.125)

#: Images of a micro-batch that statistics are taken over, at least.
LEAST_FOR_STATISTICS = 8

#: Formats that are chosen unasked: how many bytes ``mask`` needs depends on the data, and where
#: torch packs, :data:`OF_PROGRAMS` needs the bytes of fp16 and is less exact.
SAVED_STEPS = ("fp32", "fp16", "int8")
#: Knobs of what stands between forward and backward.
OF_BACKWARD = ("release_gradients", "recompute", "saved", "frozen", "momentum")
#: The format that compiled steps can store, beside fp32; and one that torch alone can, which packs
#: int8 into less.
OF_PROGRAMS, TORCH_ALONE = "bf16", "fp16"


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
    """One knob: its steps, and how a step changes a shape.

    Parameters
    ----------
    name : str
        Of the knob.
    steps : sequence
        What is requested, and what gives up more and more.
    pull : callable
        Gives the shape at a step.
    extremes : sequence, optional
        The steps of which one needs least memory; by default the last. There are several where a
        later step may save less: recomputation in small models, or formats that torch packs where
        a step before them is a program. Those that cost least to predict come first.
    uneven : bool
        Whether a step between may save less than the one before it, so that each is tried: where
        more is frozen, a program may take more images together.
    """

    name: str
    steps: Sequence[Any]
    pull: Callable[[TrainingShape, Any], TrainingShape]
    extremes: Sequence[Any] = ()
    uneven: bool = False

    @property
    def ends(self) -> Sequence[Any]:
        """The steps of which one needs least memory."""
        return self.extremes or self.steps[-1:]

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
        Whether the model has a density: sparse layers, or a width that is one.
    batch_statistics : bool
        Whether the model takes statistics over a batch, as batch normalisation does.
    compiled : bool
        Whether steps are programs where they can be.
    freezes_first : bool
        Whether freezing comes before all other knobs: then segments are frozen one by one.
    """

    shape: TrainingShape
    least_micro_batch: int = 1
    segments: int = 0
    fixed: frozenset[str] = frozenset()
    sparse: bool = True
    batch_statistics: bool = False
    compiled: bool = False
    freezes_first: bool = False

    @classmethod
    def of(
        cls,
        trace: ModelTrace,
        shape: TrainingShape,
        fixed: frozenset[str] = frozenset(),
        *,
        compiled: bool = False,
    ) -> "PlanLimits":
        """Return the limits of a model: what it is decides how far each knob may go."""
        model = trace.meta_model
        statistics = has_batch_statistics(model)
        return cls(
            shape,
            least_micro_batch=LEAST_FOR_STATISTICS if statistics else 1,
            segments=len(segments_of(model, shape.memory.segments)),
            fixed=fixed,
            sparse=bool(trace.spec.groups) or trace.at_width is not None,
            batch_statistics=statistics,
            compiled=compiled,
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
        limits = replace(self, freezes_first=preference[0] == "frozen")
        return [limits._knob(name) for name in preference if name not in self.fixed]

    def _extremes(self, name: str, steps: Sequence[Any]) -> Sequence[Any]:
        if name == "recompute":
            return steps
        if name == "saved" and self.compiled:
            return [it for it in steps if it != TORCH_ALONE]
        return ()

    def _knob(self, name: str) -> Knob:
        made = KNOBS.build(name, self)
        if KNOBS.is_builtin(name):
            uneven = self.freezes_first and name == "frozen"
            return Knob(name, made[0], made[1], self._extremes(name, made[0]), uneven)
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
    """Keep activations in fewer bits: as bf16 first, where steps may be programs."""
    steps = (SAVED_STEPS[0], OF_PROGRAMS, *SAVED_STEPS[1:]) if limits.compiled else SAVED_STEPS
    return _from(limits.shape.memory.saved, steps), _saving("saved")


def frozen(limits: PlanLimits) -> Steps:
    """Do not train a third of the segments, or two thirds.

    Where freezing comes first it is ordered layer freezing (FedOLF: Niu et al. 2025, arXiv
    2512.23200): a device freezes as many of the first segments, one by one, as its memory asks
    for, and trains at least the last.
    """
    least = limits.shape.memory.frozen
    counts: Sequence[int] = (limits.segments // 3, 2 * limits.segments // 3)
    if limits.freezes_first:
        counts = range(1, limits.segments)
    return [least, *(count for count in counts if count > least)], _saving("frozen")


def micro_batch(limits: PlanLimits) -> Steps:
    """Halve the micro-batch, as long as it is large enough."""
    sizes = [limits.shape.micro_batch]
    while sizes[-1] > min(limits.least_micro_batch, limits.shape.batch):
        sizes.append(max(limits.least_micro_batch, -(-sizes[-1] // 2)))
    return sizes, _part("micro_batch")


def density(limits: PlanLimits) -> Steps:
    """Lower the density of the sparse layers, or the width that stands for it."""
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
