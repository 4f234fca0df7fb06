"""Stale updates: what a client's training on an old version of the model means for the present one.

FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022),
algorithm 1: the server adds up the differences that clients made to the versions they had fetched,
each times a weight that falls with its staleness, and divides by the number of updates. The weights
do not stand in the divisor: a buffer of stale updates takes a shorter step.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mest_fed.errors import WireError
from mest_fed.nn import SparseState
from mest_fed.nn.state import Floats
from server.global_model import GlobalModel, MaskSet

#: Names of dense tensors that are statistics of batches and not weights.
_STATISTICS = ("running_mean", "running_var")


def discount(staleness: int, exponent: float) -> float:
    """Return the weight of an update that is so many versions old, (1 + staleness)^-exponent.

    The paper takes the exponent 1/2.
    """
    return float((1.0 + staleness) ** -exponent)


def rebase(
    update: SparseState,
    fetched: SparseState,
    rows: Mapping[str, npt.NDArray[np.bool_]],
    model: GlobalModel,
    share: float,
) -> SparseState:
    """Make a share of a client's difference to the present model.

    Parameters
    ----------
    update : SparseState
        What the client came to, on the masks of ``fetched``.
    fetched : SparseState
        What it started from.
    rows : mapping of str to bool array
        Mask group -> which of its slots the present model still holds, shape ``(live,)``. The rest
        of the update is left out.
    model : GlobalModel
        The present model.
    share : float
        Of the difference, in (0, 1].

    Returns
    -------
    SparseState
        The present values plus the share of the difference, on the slots that are left. A batch
        statistic moves by the share from its present value towards the client's instead: a variance
        that had differences added to it might become negative.

    Raises
    ------
    WireError
        If a value is not finite.
    """
    masks: MaskSet = {group: fetched.masks[group][rows[group]] for group in fetched.masks}
    present = model.state(masks)
    values = {}
    for group, layers in model.spec.groups.items():
        for layer in layers:
            before, after = fetched.values[layer], update.values[layer]
            left = rows[group]
            values[layer] = _moved(present.values[layer], before[left], after[left], share)
    dense = {}
    for name, tensor in present.dense.items():
        start = tensor if name.endswith(_STATISTICS) else fetched.dense[name]
        dense[name] = _moved(tensor, start, update.dense[name], share)
    return SparseState(masks, values, dense)


def _moved(present: Floats, before: Floats, after: Floats, share: float) -> Floats:
    """Return ``present + share (after - before)``, computed in double precision."""
    change = after.astype(np.float64) - before
    with np.errstate(over="ignore"):
        moved: Floats = (present + share * change).astype(np.float32)
    if not np.isfinite(moved).all():
        raise WireError("not every value is a finite number once the difference is added")
    return moved
