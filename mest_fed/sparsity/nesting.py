"""Nested masks: a device of lower density holds the best granules of a device of higher density.

The cut itself is :func:`mest_fed.sparsity.select.keep_best`; this file gives it the order.
"""

import torch
from torch import Tensor


def nested_order(importance: Tensor, newborn: Tensor) -> Tensor:
    """Score live granules so that every share of the best holds its share of the newborn.

    A granule that was just grown is worth nothing yet. Ranked by importance alone it would reach
    only the devices of highest density, and mutation would pass the small ones by. So newborn
    granules are spread evenly over the ranking of the old ones.

    Parameters
    ----------
    importance : Tensor
        Of the live granules, shape ``(live,)``; the order among newborn ones is kept as given.
    newborn : Tensor
        bool, shape ``(live,)``.

    Returns
    -------
    Tensor
        Scores in (0, 1], larger is better, shape ``(live,)``.
    """
    scores = torch.empty(len(importance), dtype=torch.float64, device=importance.device)
    for group, offset in ((~newborn, 0.0), (newborn, 0.5)):
        size = int(group.sum())
        if size == 0:
            continue
        order = torch.sort(importance[group], descending=True, stable=True).indices
        rank = torch.empty(size, dtype=torch.float64, device=importance.device)
        rank[order] = torch.arange(size, dtype=torch.float64, device=importance.device)
        scores[group] = 1 - (rank + offset) / (size + 1)
    return scores
