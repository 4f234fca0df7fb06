"""The sparse-training methods, each as its difference from its parent."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from mest_fed.catalogue import METHODS
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.mutation import Bounds, Method
from mest_fed.sparsity.schedules import Constant, CosineDecay, Schedule, Stages


@dataclass(frozen=True)
class Dense(Method):
    """Dense layers, which have no mask."""

    sparse = False


@dataclass(frozen=True)
class Static(Method):
    """The initial mask to the end."""


@dataclass(frozen=True)
class Set(Method):
    """Sparse Evolutionary Training (Mocanu et al. 2018): drop by magnitude, grow at random.

    Parameters
    ----------
    fraction : Schedule
        Share of the active granules that a mutation replaces.
    """

    fraction: Schedule = field(default=Constant(0.3))

    def bounds(self, progress: float) -> Bounds:
        """Replace ``fraction`` of the active granules; the ceiling is hard."""
        return Bounds(floor=1 - self.fraction(progress))


@dataclass(frozen=True)
class RigL(Set):
    """Rigging the Lottery (Evci et al. 2020): grow where the dense gradient is largest."""

    fraction: Schedule = field(default=CosineDecay(0.3))

    needs_dense_gradient = True

    def growth_order(
        self, layout: Layout, generator: torch.Generator, dense_gradient: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Propose each granule's slot of largest gradient norm, scored by that norm."""
        if dense_gradient is None:
            raise ValueError("RigL grows by the dense gradient, and none was given")
        return layout.best_slots(dense_gradient)


@dataclass(frozen=True)
class MestEM(Set):
    """MEST, Elastic Mutation: replace 20%, 10%, then none of the active granules; hard bound."""

    gradient_weight: float = 0.5
    fraction: Schedule = field(default=Stages(0.2, 0.1))


@dataclass(frozen=True)
class MestEMS(MestEM):
    """MEST, Elastic Mutation with a soft memory bound (EM&S): grow above the target, then drop.

    New granules are ranked together with the old ones only after they have trained.

    Parameters
    ----------
    overshoot : Schedule
        Extra active granules as a share of the target; MEST uses 50% -> 25% -> 0 at 90% sparsity.
    """

    overshoot: Schedule = field(default=Stages(0.5, 0.25))

    def bounds(self, progress: float) -> Bounds:
        """Drop to the target, grow above it."""
        return Bounds(ceiling=1 + self.overshoot(progress))

    @classmethod
    def for_density(cls, density: float, **options: Any) -> Self:
        """Overshoot by 100% -> 50% at a density of 5% and below, as MEST does at 95% sparsity."""
        if density <= 0.05:
            options = {"overshoot": Stages(1.0, 0.5), **options}
        return super().for_density(density, **options)


def build_method(name: str, density: float, gradient_weight: float | None = None) -> Method:
    """Build a method by name.

    Parameters
    ----------
    name : str
        A name of :data:`~mest_fed.catalogue.METHODS`. ``dense`` trains dense layers.
    density : float
        Target density, of which some methods make their options.
    gradient_weight : float, optional
        Lambda of the importance; the method's own if left out.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    options = {} if gradient_weight is None else {"gradient_weight": gradient_weight}
    kind = METHODS.find(name)
    if isinstance(kind, type) and issubclass(kind, Method):
        kind = partial(kind.for_density, density)
    method: Method = METHODS.call(name, kind, **options)
    return method
