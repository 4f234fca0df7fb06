"""Norm clipping: no update moves the model further than a bound.

Sun et al., "Can You Really Backdoor Federated Learning?" (2019), section 3.3. A client that was
sent w and came to w' counts as

    w + (w' - w) / max(1, ||w' - w|| / M),

where the norm is L2 over all numbers that travel: the weights that the update holds, and the dense
tensors, running statistics among them. A weight that the client grew was sent as zero. Masks stay
as the client sent them. M is ``server.clip_norm``: then it is done update by update, and so goes
with sums where updates are computed. Or M is ``server.clip_median`` times the median of the
round's norms, for which the updates of the round are kept: honest updates become shorter as a
model converges, and a fixed M that lets them through at first lets through too much in the end.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import NamedTuple

import numpy as np

from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState

log = getLogger(__name__)


@dataclass(frozen=True)
class NormClipping:
    """Clips updates to a fixed bound.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    bound : float
        The largest norm; 0 clips nothing.
    """

    spec: ModelSpec
    bound: float

    def __call__(self, state: SparseState, sent: SparseState) -> tuple[SparseState, float]:
        """Clip an update.

        Parameters
        ----------
        state : SparseState
            What the client came to; its numbers are at most 1e18.
        sent : SparseState
            What it was sent; the masks may differ.

        Returns
        -------
        state : SparseState
            The same one, if its norm is within the bound.
        norm : float
            Of the update as it came; 0 where nothing is clipped.
        """
        if not self.bound:
            return state, 0.0
        norm = self.norm(state, sent)
        return self.moved(state, sent, self.bound / norm if norm else 1.0), norm

    def norm(self, state: SparseState, sent: SparseState) -> float:
        """Return the L2 distance of an update from what was sent."""
        start = self._start_of(state, sent)
        before = [*start.values.values(), *(start.dense[name] for name in state.dense)]
        after = [*(state.values[name] for name in start.values), *state.dense.values()]
        squares = (
            float(np.square(new.astype(np.float64) - old).sum())
            for old, new in zip(before, after, strict=True)
        )
        return math.sqrt(sum(squares))

    def moved(self, state: SparseState, sent: SparseState, share: float) -> SparseState:
        """Return the point at a share of the way to an update; the update itself from 1 on."""
        if share >= 1:
            return state
        start = self._start_of(state, sent)
        values = {n: _between(start.values[n], after, share) for n, after in state.values.items()}
        dense = {n: _between(start.dense[n], after, share) for n, after in state.dense.items()}
        return SparseState(state.masks, values, dense)

    def _start_of(self, state: SparseState, sent: SparseState) -> SparseState:
        """Return what was sent, on the update's masks: zero where it was not sent."""
        values: dict[str, Floats] = {}
        for group, layers in self.spec.groups.items():
            slots, offered = state.masks[group], sent.masks[group]
            if np.array_equal(slots, offered):
                values |= {layer: sent.values[layer] for layer in layers}
                continue
            for layer in layers:
                layout = self.spec.layouts[layer]
                dense = layout.scatter(sent.values[layer], offered).reshape(-1)
                values[layer] = layout.gather(dense, slots)
        return SparseState(state.masks, values, sent.dense)


class _Kept(NamedTuple):
    """An update that waits for the others of its round."""

    state: SparseState
    sent: SparseState
    weight: float
    offered: Mapping[str, Slots] | None
    untrained: Collection[str]


class RoundClipping:
    """The updates of a round on their way into its aggregate.

    Parameters
    ----------
    clip : NormClipping
        Clips to a fixed bound.
    factor : float
        Further clips to so many times the median of the round's norms; 0 does not.

    Attributes
    ----------
    norms : list of float
        Of the updates as they came.
    """

    def __init__(self, clip: NormClipping, factor: float) -> None:
        self.clip, self.factor = clip, factor
        self.norms: list[float] = []
        self._kept: list[_Kept] = []

    def add(
        self,
        mean: Aggregate,
        state: SparseState,
        sent: SparseState,
        weight: float,
        offered: Mapping[str, Slots] | None = None,
        *,
        untrained: Collection[str] = (),
    ) -> None:
        """Add an update to the aggregate, clipped; or keep it until :meth:`complete`."""
        if self.factor:
            self.norms.append(self.clip.norm(state, sent))
            self._kept.append(_Kept(state, sent, weight, offered, untrained))
            return
        state, norm = self.clip(state, sent)
        self.norms.append(norm)
        mean.add(state, weight, offered, untrained)

    def complete(self, mean: Aggregate) -> None:
        """Add what was kept, and say what the norms were, by which a bound is chosen."""
        bound = self.clip.bound or math.inf
        if self.factor and self.norms:
            bound = min(bound, self.factor * float(np.median(self.norms)))
        for norm, it in zip(self.norms, self._kept, strict=False):
            moved = self.clip.moved(it.state, it.sent, bound / norm if norm else 1.0)
            mean.add(moved, it.weight, it.offered, it.untrained)
        self._kept = []
        if bound < math.inf and self.norms:
            log.info(
                "norms of %d updates: median %.4g, largest %.4g; %d clipped to %.4g",
                len(self.norms),
                np.median(self.norms),
                max(self.norms),
                sum(norm > bound for norm in self.norms),
                bound,
            )


def _between(before: Floats, after: Floats, share: float) -> Floats:
    """Return the point at a share of the way, computed in double precision."""
    start = before.astype(np.float64)
    moved: Floats = (start + share * (after - start)).astype(np.float32)
    return moved
