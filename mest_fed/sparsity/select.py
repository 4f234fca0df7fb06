"""Choosing granules by score, balanced over a layout's groups."""

import numpy as np
import torch
from torch import Tensor

from mest_fed.sparsity.layout import Layout
from mest_fed.sparsity.mask import Mask


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
    """Return the mask of the ``count`` live granules with the best scores.

    Masks kept from the same mask and scores are nested: the smaller lies within the larger.

    Parameters
    ----------
    mask : Mask
        The mask to cut down; returned as it is when it has no more than ``count``.
    scores : Tensor
        Of its live granules, shape ``(live,)``.
    """
    if count >= len(mask):
        return mask
    layout = mask.layout
    if layout.num_groups == 1:
        return Mask(layout, mask.slots[select_best(scores, count)])
    every = torch.full((layout.num_granules,), -torch.inf, dtype=scores.dtype, device=scores.device)
    every[mask.granules] = scores
    alive = torch.zeros_like(every, dtype=torch.bool)
    alive[select_best(every, count, layout.num_groups)] = True
    return Mask(layout, mask.slots[alive[mask.granules]])
