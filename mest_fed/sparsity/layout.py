"""How a scheme cuts one weight tensor into granules, and where each granule's weights are.

A *granule* is the smallest part of a weight that becomes active or inactive. A *slot* is a granule
together with its variant: a scheme whose granules have one variant only numbers slots as granules,
the pattern scheme has eight slots for each 3x3 kernel. Everything above this file (masks, mutation,
layers, wire, server) speaks of slots and of values of shape ``(active, width)``, never of a scheme.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mest_fed.errors import not_allowed
from mest_fed.kernels import StorageFormat, gather, scatter

#: Slots whose norms are taken at once: their positions take 8 bytes a weight.
_SLOTS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Layout(ABC):
    """Granules of one weight tensor under one scheme.

    Parameters
    ----------
    shape : tuple of int
        Shape of the dense weight, ``(out, in, kh, kw)`` or ``(out, in)``.
    """

    shape: tuple[int, ...]

    #: Variants of a granule; a slot is ``granule * variants + variant``.
    variants = 1

    @property
    @abstractmethod
    def num_granules(self) -> int:
        """Number of granules, active or inactive."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Values stored for one active granule."""

    @property
    @abstractmethod
    def storage(self) -> StorageFormat:
        """How kernels read slots and values."""

    @property
    def num_groups(self) -> int:
        """Equal consecutive runs of granules over which the active ones are balanced within one."""
        return 1

    @abstractmethod
    def positions(self, slots: Tensor) -> Tensor:
        """Return where the values of slots stand in the flattened dense weight.

        Parameters
        ----------
        slots : Tensor
            Integer slots, shape ``(n,)``.

        Returns
        -------
        Tensor
            int64 of shape ``(n, width)``. A value that pads an incomplete granule has the
            position ``num_weights``, one past the end.
        """

    @property
    def num_weights(self) -> int:
        """Number of weights of the dense tensor."""
        return math.prod(self.shape)

    @property
    def num_slots(self) -> int:
        """Number of distinct slots."""
        return self.num_granules * self.variants

    @property
    def max_density(self) -> float:
        """The largest density that the scheme can hold."""
        return 1.0

    def count_for(self, density: float) -> int:
        """Return the number of active granules that comes nearest to a density; at least one.

        Raises
        ------
        InputError
            If the density is outside ``(0, max_density]``.
        """
        if not 0 < density <= self.max_density + 1e-9:
            raise not_allowed("density", density, f"a number in (0, {self.max_density:.4g}]")
        full = self.num_granules if self.max_density == 1.0 else self.num_weights / self.width
        return min(self.num_granules, max(1, round(density * full)))

    def granules(self, slots: Tensor) -> Tensor:
        """Return the granule of each slot."""
        return slots if self.variants == 1 else slots // self.variants

    def active_weights(self, slots: Tensor) -> int:
        """Count the weights that slots cover, padding left out."""
        return len(slots) * self.width

    def gather(self, dense: Tensor, slots: Tensor) -> Tensor:
        """Read the values of slots, shape ``(n, width)``, from a dense weight."""
        return gather(dense, self.positions(slots))

    def scatter(self, values: Tensor, slots: Tensor) -> Tensor:
        """Build the dense weight that holds ``values`` at ``slots`` and zero elsewhere."""
        return scatter(values, self.positions(slots), self.shape)

    def best_slots(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each granule's variant of largest L2 norm.

        Parameters
        ----------
        dense : Tensor
            Dense weight of shape ``self.shape``.

        Returns
        -------
        slots : Tensor
            int64, one slot for each granule; ties take the first variant.
        norms : Tensor
            L2 norm of each chosen slot.
        """
        padded = torch.cat([dense.reshape(-1), dense.new_zeros(1)])
        every = torch.arange(self.num_slots, device=dense.device)
        norms = torch.cat(
            [
                torch.linalg.vector_norm(padded[self.positions(some)], dim=1)
                for some in torch.split(every, _SLOTS_AT_ONCE)
            ]
        )
        best = norms.view(self.num_granules, self.variants).max(dim=1)
        base = torch.arange(self.num_granules, device=dense.device) * self.variants
        return base + best.indices, best.values
