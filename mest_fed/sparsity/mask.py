"""The mask of one weight (or of two that share it): which slots are active."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mest_fed.sparsity.arrays import Indices, Slots, sorted_down
from mest_fed.sparsity.layout import Layout

Scores = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Mask:
    """Active slots of a layout.

    Parameters
    ----------
    layout : Layout
        How the weight is cut. For layers that share a mask, the first one's layout.
    slots : int32 array
        Shape ``(active,)``, strictly increasing, at most one slot for each granule.
    """

    layout: Layout
    slots: Slots

    @classmethod
    def of(cls, layout: Layout, slots: npt.NDArray[Any]) -> "Mask":
        """Build a mask from slots in any order."""
        return cls(layout, np.sort(slots).astype(np.int32))

    def __len__(self) -> int:
        """Return the number of active granules."""
        return len(self.slots)

    @property
    def granules(self) -> Indices:
        """Active granules, int64, increasing."""
        return self.layout.granules(self.slots.astype(np.int64))

    @property
    def density(self) -> float:
        """Active weights / weights."""
        return self.layout.active_weights(self.slots) / self.layout.num_weights

    def active(self) -> Flags:
        """Return a bool array over all granules: which are active."""
        flags = np.zeros(self.layout.num_granules, np.bool_)
        flags[self.granules] = True
        return flags

    def rows_in(self, other: "Mask") -> Indices:
        """Return for each active slot its row in another mask of the same layout, or -1.

        Returns
        -------
        int64 array
            Shape ``(len(self),)``.
        """
        if len(other) == 0:
            return np.full(len(self), -1)
        row = np.searchsorted(other.slots, self.slots).clip(max=len(other) - 1)
        return np.where(other.slots[row] == self.slots, row, -1)


def carry(values: Any, rows: Any) -> Any:
    """Carry rows of ``values`` over to a new mask; a row of -1 starts at zero.

    Parameters
    ----------
    values : array or Tensor
        Shape ``(old active, ...)``.
    rows : array or Tensor
        int64, shape ``(new active,)``, as from :meth:`Mask.rows_in`.
    """
    shape = len(rows), *values.shape[1:]
    arrays = isinstance(values, np.ndarray)
    carried: Any = np.zeros(shape, values.dtype) if arrays else values.new_zeros(shape)
    found = rows >= 0
    carried[found] = values[rows[found]]
    return carried


def slot_objection(layout: Layout, slots: Slots) -> str | None:
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


def select_best(scores: Scores, count: int, num_groups: int = 1) -> Indices:
    """Choose the granules with the best scores, as many in each group, within one.

    With more than one group each gets the ``count // num_groups`` best of its own, and the rest
    goes to the groups whose next one scores best. The choice for a smaller count is a subset of
    the choice for a larger one. Ties go to the lower granule.

    Parameters
    ----------
    scores : array
        Shape ``(granules,)``; groups are equal consecutive runs. ``-inf`` is chosen last.
    count : int
        How many to choose, in ``[0, granules]``.
    num_groups : int
        Number of groups; divides the number of granules.

    Returns
    -------
    int64 array
        Granules, increasing, shape ``(count,)``.
    """
    if num_groups == 1:
        return _best(scores, count)
    by_group = scores.reshape(num_groups, -1)
    ranked = sorted_down(by_group)
    granules = ranked + np.arange(num_groups)[:, None] * ranked.shape[1]
    base, extra = divmod(count, num_groups)
    chosen = granules[:, :base].reshape(-1)
    if extra:
        lucky = sorted_down(scores[granules[:, base]])[:extra]
        chosen = np.concatenate([chosen, granules[lucky, base]])
    return np.sort(chosen)


def _best(scores: Scores, count: int) -> Indices:
    """Choose by the score of the last one chosen: sorting would take 12 bytes a granule more."""
    if count == 0:
        return np.empty(0, np.int64)
    if np.isnan(scores.max()):
        scores = np.where(np.isnan(scores), np.inf, scores)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = scores > least
    ties = np.flatnonzero(scores == least)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def magnitude_mask(layout: Layout, dense: npt.NDArray[Any], count: int) -> Mask:
    """Return the mask of the ``count`` granules of ``dense`` with the largest L2 norm."""
    slots, lengths = layout.best_slots(dense)
    return Mask.of(layout, slots[select_best(lengths, count, layout.num_groups)])


def keep_best(mask: Mask, scores: Scores, count: int) -> Mask:
    """Return the mask of the ``count`` active granules with the best scores.

    Masks kept from the same mask and scores are nested: the smaller lies within the larger.

    Parameters
    ----------
    mask : Mask
        The mask to cut down; returned as it is when it has no more than ``count``.
    scores : array
        Of its active granules, shape ``(active,)``.
    """
    if count >= len(mask):
        return mask
    layout = mask.layout
    if layout.num_groups == 1:
        return Mask(layout, mask.slots[select_best(scores, count)])
    every = np.full(layout.num_granules, -np.inf, scores.dtype)
    every[mask.granules] = scores
    chosen = np.zeros(layout.num_granules, np.bool_)
    chosen[select_best(every, count, layout.num_groups)] = True
    return Mask(layout, mask.slots[chosen[mask.granules]])


def nested_order(importance: Scores, grown: Flags) -> npt.NDArray[np.float64]:
    """Score active granules so that every share of the best holds its share of the grown.

    A granule that was just grown is worth nothing yet. Ranked by importance alone it would reach
    only the devices of highest density, and mutation would pass the small ones by. So grown
    granules are spread evenly over the ranking of the old ones.

    Parameters
    ----------
    importance : array
        Of the active granules, shape ``(active,)``; the order among grown ones is kept as given.
    grown : bool array
        Shape ``(active,)``.

    Returns
    -------
    float64 array
        Scores in (0, 1], larger is better, shape ``(active,)``.
    """
    scores = np.empty(len(importance))
    for group, offset in ((~grown, 0.0), (grown, 0.5)):
        size = int(group.sum())
        if size == 0:
            continue
        rank = np.empty(size)
        rank[sorted_down(importance[group])] = np.arange(size)
        scores[group] = 1 - (rank + offset) / (size + 1)
    return scores
