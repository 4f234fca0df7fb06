"""Scores of weights before the first round: the dense task that gives them, and its plan.

Client and server both build it from the configuration, as they do the task itself.
"""

from functools import lru_cache

import numpy as np

from mest_fed.errors import BudgetError
from mest_fed.memory import Plan
from mest_fed.sparsity import select_best
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec
from mest_fed.task import Task


@lru_cache(maxsize=2)
def dense_task(task: Task) -> Task:
    """Return the dense task of a run, which its clients in this process share."""
    return task.dense()


@lru_cache(maxsize=64)
def scoring_plan(task: Task, budget: int) -> Plan:
    """Plan one dense pass forward and back within a budget: a step of training without its update.

    Raises
    ------
    BudgetError
        If nothing fits, or only what leaves layers without gradients.
    """
    plan = dense_task(task).plan(budget, "scores of dense weights")
    if plan.memory.frozen:
        raise BudgetError("scores of dense weights: only a plan that freezes layers fits")
    return plan


def scores_spec(spec: ModelSpec) -> ModelSpec:
    """Return what scores are on the wire: a number from 0 on for each weight of sparse layers."""
    shapes: dict[str, tuple[int, ...]] = {
        layer: (layout.num_weights,) for layer, layout in spec.layouts.items()
    }
    return ModelSpec({}, {}, shapes, frozenset(shapes))


def salient_masks(
    scores: dict[str, Floats], spec: ModelSpec, counts: dict[str, int]
) -> dict[str, Slots]:
    """Return the masks of the granules of largest score, a granule's being the sum of its weights'.

    Parameters
    ----------
    scores : dict of str to array
        Sparse layer -> a score from 0 on for each weight.
    spec : ModelSpec
        Of the sparse model.
    counts : dict of str to int
        Mask group -> active granules.
    """
    masks = {}
    for group, layers in spec.groups.items():
        # The norm of roots is the root of the sum.
        roots = [np.sqrt(scores[it]).reshape(spec.layouts[it].shape) for it in layers]
        found = [spec.layouts[it].best_slots(root) for it, root in zip(layers, roots, strict=True)]
        sums = np.sum([norms**2 for _, norms in found], axis=0)
        layout, (slots, _) = spec.group_layout(group), found[0]
        chosen = select_best(sums, counts[group], layout.num_groups)
        masks[group] = slots[chosen].astype(np.int32)
    return masks
