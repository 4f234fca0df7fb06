"""The mask of one weight (or of two that share it): which slots are active."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class Mask:
    """Active slots of a layout.

    Parameters
    ----------
    layout : Layout
        How the weight is cut. For layers that share a mask, the first one's layout.
    slots : Tensor
        int32, shape ``(active,)``, strictly increasing, at most one slot for each granule.
    """

    layout: Layout
    slots: Tensor

    @classmethod
    def of(cls, layout: Layout, slots: Tensor) -> "Mask":
        """Build a mask from slots in any order."""
        return cls(layout, slots.sort().values.to(torch.int32))

    def __len__(self) -> int:
        """Return the number of active granules."""
        return len(self.slots)

    @property
    def granules(self) -> Tensor:
        """Active granules, int64, increasing."""
        return self.layout.granules(self.slots.long())

    @property
    def density(self) -> float:
        """Active weights / weights."""
        return self.layout.active_weights(self.slots) / self.layout.num_weights

    def active(self) -> Tensor:
        """Return a bool tensor over all granules: which are active."""
        flags = torch.zeros(self.layout.num_granules, dtype=torch.bool, device=self.slots.device)
        flags[self.granules] = True
        return flags

    def rows_in(self, other: "Mask") -> Tensor:
        """Return for each active slot its row in another mask of the same layout, or -1.

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
        Shape ``(old active, width)``.
    rows : Tensor
        int64, shape ``(new active,)``, as from :meth:`Mask.rows_in`.
    """
    carried = values.new_zeros((len(rows), *values.shape[1:]))
    found = rows >= 0
    carried[found] = values[rows[found]]
    return carried


def slot_objection(layout: Layout, slots: npt.NDArray[np.int32]) -> str | None:
    """Return why slots of shape ``(active,)`` are no mask of a layout, or None if they are one."""
    if len(slots) == 0:
        return None
    increase = (slots[1:] > slots[:-1]).all()
    first, last = (slots[0], slots[-1]) if increase else (slots.min(), slots.max())
    if first < 0 or last >= layout.num_slots:
        return f"a slot is out of range [0, {layout.num_slots})"
    if not increase:
        return "slots do not increase"
    if layout.variants > 1:
        granules = slots // layout.variants
        if not (granules[1:] > granules[:-1]).all():
            return "two slots share a granule"
    return None


def select_best(scores: Tensor, count: int, num_groups: int = 1) -> Tensor:
    """Choose the granules with the best scores, as many in each group, within one.

    With more than one group each gets the ``count // num_groups`` best of its own, and the rest
    goes to the groups whose next one scores best. The choice for a smaller count is a subset of
    the choice for a larger one. Ties go to the lower granule.

    Parameters
    ----------
    scores : Tensor
        Shape ``(granules,)``; groups are equal consecutive runs. ``-inf`` is chosen last.
    count : int
        How many to choose, in ``[0, granules]``.
    num_groups : int
        Number of groups; divides the number of granules.

    Returns
    -------
    Tensor
        int64 granules, increasing, shape ``(count,)``.
    """
    if num_groups == 1:
        return _best(scores, count)
    ranked = torch.sort(scores.view(num_groups, -1), dim=1, descending=True, stable=True)
    start = torch.arange(num_groups, device=scores.device).unsqueeze(1) * ranked.indices.shape[1]
    granules = ranked.indices + start
    base, extra = divmod(count, num_groups)
    chosen = granules[:, :base].reshape(-1)
    if extra:
        lucky = torch.sort(ranked.values[:, base], descending=True, stable=True).indices[:extra]
        chosen = torch.cat([chosen, granules[lucky, base]])
    return chosen.sort().values


def _best(scores: Tensor, count: int) -> Tensor:
    """Choose by the score of the last one chosen: sorting would take 12 bytes a granule more."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    plain = scores.detach().to("cpu", torch.promote_types(scores.dtype, torch.float32)).numpy()
    plain = np.where(np.isnan(plain), np.inf, plain) if np.isnan(plain).any() else plain
    least = np.partition(plain, len(plain) - count)[len(plain) - count]
    chosen = plain > least
    ties = np.flatnonzero(plain == least)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(np.flatnonzero(chosen)).to(scores.device)


def magnitude_mask(layout: Layout, dense: Tensor, count: int) -> Mask:
    """Return the mask of the ``count`` granules of ``dense`` with the largest L2 norm."""
    slots, norms = layout.best_slots(dense)
    return Mask.of(layout, slots[select_best(norms, count, layout.num_groups)])


def keep_best(mask: Mask, scores: Tensor, count: int) -> Mask:
    """Return the mask of the ``count`` active granules with the best scores.

    Masks kept from the same mask and scores are nested: the smaller lies within the larger.

    Parameters
    ----------
    mask : Mask
        The mask to cut down; returned as it is when it has no more than ``count``.
    scores : Tensor
        Of its active granules, shape ``(active,)``.
    """
    if count >= len(mask):
        return mask
    layout = mask.layout
    if layout.num_groups == 1:
        return Mask(layout, mask.slots[select_best(scores, count)])
    every = torch.full((layout.num_granules,), -torch.inf, dtype=scores.dtype, device=scores.device)
    every[mask.granules] = scores
    chosen = torch.zeros_like(every, dtype=torch.bool)
    chosen[select_best(every, count, layout.num_groups)] = True
    return Mask(layout, mask.slots[chosen[mask.granules]])


def nested_order(importance: Tensor, grown: Tensor) -> Tensor:
    """Score active granules so that every share of the best holds its share of the grown.

    A granule that was just grown is worth nothing yet. Ranked by importance alone it would reach
    only the devices of highest density, and mutation would pass the small ones by. So grown
    granules are spread evenly over the ranking of the old ones.

    Parameters
    ----------
    importance : Tensor
        Of the active granules, shape ``(active,)``; the order among grown ones is kept as given.
    grown : Tensor
        bool, shape ``(active,)``.

    Returns
    -------
    Tensor
        Scores in (0, 1], larger is better, shape ``(active,)``.
    """
    scores = torch.empty(len(importance), dtype=torch.float64, device=importance.device)
    for group, offset in ((~grown, 0.0), (grown, 0.5)):
        size = int(group.sum())
        if size == 0:
            continue
        order = torch.sort(importance[group], descending=True, stable=True).indices
        rank = torch.empty(size, dtype=torch.float64, device=importance.device)
        rank[order] = torch.arange(size, dtype=torch.float64, device=importance.device)
        scores[group] = 1 - (rank + offset) / (size + 1)
    return scores
