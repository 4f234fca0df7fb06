"""The levers of a plan: what may be given up to fit, how far, and in which order.

Each lever has steps, from what is wished to what needs least memory. A plan is as few steps as fit,
where a step of a lever late in the order of preference is only taken when all steps of the earlier
ones do not suffice. That is the stated order of harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mest_fed.errors import not_allowed
from mest_fed.memory.activations import RECOMPUTE
from mest_fed.memory.shape import TrainingShape

#: Densities that a tier may get, as shares of the target.
DENSITY_STEPS = (1.0, 0.5, 0.25, 0.125)

#: Least harm first, by what each costs in short runs (docs/figures.md). Consuming gradients is
#: exact and free. Smaller micro-batches are exact where no statistics are taken over a batch, and
#: cost little time. Recomputation is exact and costs time. Fewer bits make gradients inexact. Less
#: density, frozen segments and no momentum cost accuracy, in this order.
PREFERENCE = ("consume", "micro_batch", "recompute", "saved", "density", "frozen", "momentum")

#: The same where batch normalisation takes its statistics over a micro-batch: smaller ones cost
#: accuracy, more than 8 bits do.
BATCH_NORM_PREFERENCE = (
    "consume",
    "recompute",
    "saved",
    "micro_batch",
    "density",
    "frozen",
    "momentum",
)

#: Formats that are chosen unasked: bf16 needs the bytes of fp16 and is less exact, and how many
#: bytes ``mask`` needs depends on the data.
SAVED_STEPS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Lever:
    """One lever: its steps, and how a step changes a shape."""

    name: str
    steps: Sequence[Any]
    pull: Callable[[TrainingShape, Any], TrainingShape]

    def step_of(self, shape: TrainingShape) -> int:
        """Return at which of its steps the lever is in a shape; 0 is what was wished."""
        return next(i for i, step in enumerate(self.steps) if self.pull(shape, step) == shape)


@dataclass(frozen=True)
class Wish:
    """What is wished for, and how far each lever may go.

    Parameters
    ----------
    shape : TrainingShape
        The wish: density, batch, momentum and the savings that are there in any case.
    least_micro_batch : int
        Batch statistics need several images.
    segments : int
        The model's segments, which may be recomputed, and up to two thirds of them frozen.
    fixed : frozenset of str
        Levers that stay where the wish has them.
    sparse : bool
        Whether the model has a density.
    batch_statistics : bool
        Whether the model has batch normalisation.
    """

    shape: TrainingShape
    least_micro_batch: int = 1
    segments: int = 0
    fixed: frozenset[str] = frozenset()
    sparse: bool = True
    batch_statistics: bool = False

    @property
    def preference(self) -> tuple[str, ...]:
        """The order of preference where nobody gives another."""
        return BATCH_NORM_PREFERENCE if self.batch_statistics else PREFERENCE

    def levers(self, preference: Sequence[str] | None = None) -> list[Lever]:
        """Return the levers in an order of preference.

        Raises
        ------
        InputError
            If the order is not one of :data:`PREFERENCE`.
        """
        preference = self.preference if preference is None else preference
        if sorted(preference) != sorted(PREFERENCE):
            allowed = f"each of {', '.join(PREFERENCE)}, in any order"
            raise not_allowed("preference", ", ".join(preference), allowed)
        every = {lever.name: lever for lever in self._all()}
        return [every[name] for name in preference if name not in self.fixed]

    def _all(self) -> list[Lever]:
        shape, savings = self.shape, self.shape.savings
        return [
            Lever("consume", _from(savings.consume, (False, True)), _saving("consume")),
            Lever("recompute", self._recompute(), _saving("recompute")),
            Lever("saved", _from(savings.saved, SAVED_STEPS), _saving("saved")),
            Lever("frozen", self._frozen(), _saving("frozen")),
            Lever("micro_batch", self._micro_batches(), _part("micro_batch")),
            Lever("density", self._densities(), _part("density")),
            Lever("momentum", _from(shape.momentum, (True, False)), _part("momentum")),
        ]

    def _recompute(self) -> Sequence[str]:
        """Without segments there are none to recompute, unless that is wished all the same."""
        steps = RECOMPUTE if self.segments else RECOMPUTE[:-1]
        return _from(self.shape.savings.recompute, steps)

    def _micro_batches(self) -> list[int]:
        """Halve the micro-batch, as long as it is large enough."""
        sizes = [self.shape.micro_batch]
        while sizes[-1] > min(self.least_micro_batch, self.shape.batch):
            sizes.append(max(self.least_micro_batch, -(-sizes[-1] // 2)))
        return sizes

    def _densities(self) -> list[float]:
        steps = DENSITY_STEPS if self.sparse else (1.0,)
        return [self.shape.density * step for step in steps]

    def _frozen(self) -> list[int]:
        least = self.shape.savings.frozen
        thirds = (self.segments // 3, 2 * self.segments // 3)
        return [least, *(count for count in thirds if count > least)]


def _from(wished: Any, steps: Sequence[Any]) -> Sequence[Any]:
    """Return the steps from what is wished on; a wish that is no step stands alone."""
    return steps[steps.index(wished) :] if wished in steps else (wished,)


def _saving(name: str) -> Callable[[TrainingShape, Any], TrainingShape]:
    return lambda shape, step: replace(shape, savings=replace(shape.savings, **{name: step}))


def _part(name: str) -> Callable[[TrainingShape, Any], TrainingShape]:
    return lambda shape, step: replace(shape, **{name: step})
