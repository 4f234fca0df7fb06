"""Mutation of a mask: drop the least important granules, grow others. The one mechanism.

A method (see :mod:`mest_fed.sparsity.methods`) is its difference from :class:`Method`: how far the
mask shrinks and grows at a given progress, what an active granule is worth, and which inactive one
comes first. Both the client's trainer and the server mutate through it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from mest_fed.sparsity.arrays import Floats, Indices, Slots, norms
from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.mask import Flags, Mask, Scores, keep_best, select_best

#: What may grow: a slot and a score for every granule.
Proposal = tuple[Indices | Slots, Scores]


@dataclass(frozen=True)
class Bounds:
    """How far one mutation goes, as multiples of the target number of active granules.

    Parameters
    ----------
    floor : float
        Active granules after dropping.
    ceiling : float
        Active granules after growing. Above 1 the bound is soft: memory must hold the ceiling.
    """

    floor: float = 1.0
    ceiling: float = 1.0

    def floor_count(self, target: int, layout: Layout) -> int:
        """Return the granules to keep; never so few that growth would need the just-dropped."""
        inactive_in_group = layout.num_granules // layout.num_groups - -(
            -target // layout.num_groups
        )
        replaceable = layout.num_groups * inactive_in_group
        return max(1, round(target * self.floor), target - replaceable)

    def ceiling_count(self, target: int, layout: Layout) -> int:
        """Return the active granules after growing; never more than there are."""
        return min(layout.num_granules, round(target * self.ceiling))


def grow(mask: Mask, count: int, proposal: Proposal, banned: Flags | None = None) -> Mask:
    """Grow a mask to ``count`` active granules.

    Parameters
    ----------
    mask : Mask
        The mask to grow.
    count : int
        Active granules after growth.
    proposal : tuple of array
        Slots and scores as from :meth:`Method.growth_order`.
    banned : bool array or None
        Over all granules: may not grow, for example because they were just dropped.
    """
    if count <= len(mask):
        return mask
    slots, scores = proposal
    ranked, active = scores.copy(), mask.active()
    if banned is not None:
        ranked[banned] = -np.inf
    ranked[active] = np.inf
    chosen = select_best(ranked, count, mask.layout.num_groups)
    grown = chosen[~active[chosen]]
    return Mask.of(mask.layout, np.concatenate([mask.slots, slots[grown]]))


@dataclass(frozen=True)
class Method:
    """Fixed mask; the base of all sparse-training methods."""

    #: Whether layers are sparse at all.
    sparse: ClassVar[bool] = True
    #: Growth reads the gradient of inactive weights: a mutation needs a dense gradient.
    needs_dense_gradient: ClassVar[bool] = False
    #: Clients score the weights of the dense model before the first round; the best are active.
    scores_first: ClassVar[bool] = False
    #: A device's density is the share of the channels that its model has.
    cuts_width: ClassVar[bool] = False

    @classmethod
    def for_density(cls, density: float, **options: Any) -> Self:
        """Return the method with the options that suit a target density."""
        return cls(**options)

    def bounds(self, progress: float) -> Bounds:
        """Return how far a mutation at this progress goes."""
        return Bounds()

    @cached_property
    def peak(self) -> float:
        """The largest ceiling of the whole run, which a memory budget must hold."""
        return max(self.bounds(step / 64).ceiling for step in range(65))

    def importance(self, values: Floats, gradients: Floats | None) -> Scores:
        """Score active granules: by magnitude, ||w||, the norm over the granule's values.

        Parameters
        ----------
        values : array
            Shape ``(active, width)``.
        gradients : array or None
            The loss gradient of the values, same shape; None where the server mutates.
        """
        return norms(values)

    def growth_order(
        self,
        layout: Layout,
        generator: np.random.Generator,
        dense_gradient: Floats | None = None,
    ) -> Proposal:
        """Propose a slot and a score for every granule; the best inactive ones grow first.

        The base draws both at random. All who draw from the same generator propose the same.

        Parameters
        ----------
        layout : Layout
            Layout of the mask.
        generator : numpy.random.Generator
            Source of the draw.
        dense_gradient : array or None
            Shape ``layout.shape``, for methods that need it.

        Returns
        -------
        slots : integer array
            Shape ``(num_granules,)``.
        scores : array
            Finite, shape ``(num_granules,)``.
        """
        slots = np.arange(0, layout.num_slots, layout.variants, dtype=np.int32)
        if layout.variants > 1:
            slots += generator.integers(layout.variants, size=len(slots), dtype=np.int32)
        return slots, generator.random(len(slots), np.float32)

    def mutate(
        self,
        mask: Mask,
        importance: Scores,
        proposal: Proposal,
        target: int,
        bounds: Bounds,
    ) -> Mask:
        """Drop to the floor, then grow to the ceiling, never regrowing what was just dropped.

        Parameters
        ----------
        mask : Mask
            The mask before.
        importance : array
            Of its active granules, shape ``(active,)``.
        proposal : tuple of array
            As from :meth:`growth_order`.
        target : int
            Active granules that the device's density stands for.
        bounds : Bounds
            As from :meth:`bounds`.
        """
        kept = keep_best(mask, importance, bounds.floor_count(target, mask.layout))
        just_dropped = mask.active() & ~kept.active()
        count = bounds.ceiling_count(target, mask.layout)
        return grow(kept, count, proposal, just_dropped)
