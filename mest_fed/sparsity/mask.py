"""The mask of one weight (or of two that share it): which slots live. The one authority on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class Mask:
    """Live slots of a layout.

    Parameters
    ----------
    layout : Layout
        How the weight is cut. For layers that share a mask, the first one's layout.
    slots : Tensor
        int32, shape ``(live,)``, strictly increasing, at most one slot for each granule.
    """

    layout: Layout
    slots: Tensor

    @classmethod
    def of(cls, layout: Layout, slots: Tensor) -> "Mask":
        """Build a mask from slots in any order."""
        return cls(layout, slots.sort().values.to(torch.int32))

    def __len__(self) -> int:
        """Return the number of live granules."""
        return len(self.slots)

    @property
    def granules(self) -> Tensor:
        """Live granules, int64, increasing."""
        return self.layout.granules(self.slots.long())

    @property
    def density(self) -> float:
        """Live weights / weights."""
        return self.layout.live_weights(self.slots) / self.layout.num_weights

    def alive(self) -> Tensor:
        """Return a bool tensor over all granules: which are live."""
        flags = torch.zeros(self.layout.num_granules, dtype=torch.bool, device=self.slots.device)
        flags[self.granules] = True
        return flags

    def rows_in(self, other: "Mask") -> Tensor:
        """Return for each live slot its row in another mask of the same layout, or -1.

        Returns
        -------
        Tensor
            int64 of shape ``(len(self),)``.
        """
        if len(other) == 0:
            return torch.full((len(self),), -1, dtype=torch.int64, device=self.slots.device)
        row = torch.searchsorted(other.slots, self.slots).clamp_(max=len(other) - 1)
        return torch.where(other.slots[row] == self.slots, row, -1)


def carry(values: Tensor, rows: Tensor) -> Tensor:
    """Carry rows of ``values`` over to a new mask; a row of -1 starts at zero.

    Parameters
    ----------
    values : Tensor
        Shape ``(old live, width)``.
    rows : Tensor
        int64, shape ``(new live,)``, as from :meth:`Mask.rows_in`.
    """
    carried = values.new_zeros((len(rows), *values.shape[1:]))
    found = rows >= 0
    carried[found] = values[rows[found]]
    return carried


def slot_objection(layout: Layout, slots: npt.NDArray[np.int32]) -> str | None:
    """Return why slots of shape ``(live,)`` are no mask of a layout, or None if they are one."""
    if len(slots) == 0:
        return None
    if slots.min() < 0 or slots.max() >= layout.num_slots:
        return f"a slot is out of range [0, {layout.num_slots})"
    if not (slots[1:] > slots[:-1]).all():
        return "slots do not increase"
    if layout.variants > 1:
        granules = slots // layout.variants
        if not (granules[1:] > granules[:-1]).all():
            return "two slots share a granule"
    return None
