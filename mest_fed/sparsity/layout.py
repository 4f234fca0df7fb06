"""How a scheme cuts one weight tensor into granules, and where each granule's weights are.

A *granule* is the smallest part of a weight that becomes active or inactive. A *slot* is a granule
together with its variant: a scheme whose granules have one variant only numbers slots as granules,
the pattern scheme has eight slots for each 3x3 kernel. Everything above this file (masks, mutation,
layers, wire, server) speaks of slots and of values of shape ``(active, width)``, never of a scheme.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.errors import not_allowed
from mest_fed.kernels.storage import StorageFormat, size_of
from mest_fed.sparsity.arrays import Indices, norms

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
    def positions(self, slots: Any) -> Any:
        """Return where the values of slots stand in the flattened dense weight.

        Parameters
        ----------
        slots : array or Tensor
            Integer slots, shape ``(n,)``: a NumPy array, or a tensor in products by torch.

        Returns
        -------
        array or Tensor
            As ``slots``; int64 of shape ``(n, width)``. A value that pads an incomplete granule
            has the position ``num_weights``, one past the end.
        """

    @property
    def num_weights(self) -> int:
        """Number of weights of the dense tensor."""
        return size_of(self.shape)

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

    def granules(self, slots: Indices) -> Indices:
        """Return the granule of each slot."""
        return slots if self.variants == 1 else slots // self.variants

    def active_weights(self, slots: Any) -> int:
        """Count the weights that slots, an array or tensor, cover; padding is left out."""
        return len(slots) * self.width

    def gather(self, dense: npt.NDArray[Any], slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Read the values of slots, shape ``(n, width)``, from a dense weight; padding is zero."""
        positions = self.positions(slots)
        values: npt.NDArray[Any] = np.take(dense.reshape(-1), positions, mode="clip")
        values[positions >= self.num_weights] = 0
        return values

    def scatter(self, values: npt.NDArray[Any], slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Build the dense weight that holds ``values`` at ``slots`` and zero elsewhere."""
        flat = np.zeros(self.num_weights + 1, values.dtype)
        flat[self.positions(slots)] = values
        dense: npt.NDArray[Any] = flat[:-1].reshape(self.shape)
        return dense

    def best_slots(self, dense: npt.NDArray[Any]) -> tuple[Indices, npt.NDArray[Any]]:
        """Choose each granule's variant of largest L2 norm.

        Parameters
        ----------
        dense : array
            Dense weight of shape ``self.shape``.

        Returns
        -------
        slots : int64 array
            One slot for each granule; ties take the first variant.
        norms : array
            L2 norm of each chosen slot.
        """
        lengths = np.empty(self.num_slots, dense.dtype)
        for start in range(0, self.num_slots, _SLOTS_AT_ONCE):
            some = np.arange(start, min(start + _SLOTS_AT_ONCE, self.num_slots))
            lengths[some] = norms(self.gather(dense, some))
        by_granule = lengths.reshape(self.num_granules, self.variants)
        best = by_granule.argmax(axis=1)
        granules = np.arange(self.num_granules)
        return granules * self.variants + best, by_granule[granules, best]
