"""Streamed, mask-aware, example-weighted averaging.

Each weight is averaged over the clients that hold it, weighted by their examples (the rule of
FedDST, Bibikar et al. 2022, algorithm 1). An update costs O(its active weights). A weight that all
who were offered it have dropped is zero; one that no client was offered is not touched.

A layer that a client keeps frozen came back as it was sent: it is averaged over those who trained
it (as in FedOLF, Niu et al. 2025, arXiv 2512.23200), and stays as it is where none did.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState, corner

Doubles = npt.NDArray[np.float64]
#: Of the clients that hold a tensor: one sum where all of them hold all of it.
Weights = float | Doubles

#: Masks whose positions are kept: the tiers of a run, and some.
_POSITIONS_KEPT = 32


class PositionCache:
    """Where the values of a mask stand in the flattened dense weights.

    Clients of one tier hold the same mask, so positions are computed once for each mask.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._kept: dict[tuple[str, bytes], npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Return how many masks' positions are kept."""
        return len(self._kept)

    def positions(self, layer: str, slots: Slots) -> npt.NDArray[np.int64]:
        """Return int64 positions of shape ``(active, width)``; padding is one past the end."""
        key = (layer, slots.tobytes())
        if key not in self._kept:
            while len(self._kept) >= _POSITIONS_KEPT * max(1, len(self.spec.layouts)):
                del self._kept[next(iter(self._kept))]
            layout = self.spec.layouts[layer]
            self._kept[key] = layout.positions(slots)
        return self._kept[key]


@dataclass
class WeightedSum:
    """Sums of weighted values and of weights over the positions of one tensor.

    Parameters
    ----------
    size : int
        Weights of the tensor; one more place takes the padding.
    """

    size: int
    values: Doubles = field(init=False)
    weights: Doubles = field(init=False)
    offered: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros(self.size + 1)
        self.weights = np.zeros(self.size + 1)
        self.offered = np.zeros(self.size + 1, dtype=np.bool_)

    def add(self, positions: npt.NDArray[np.int64], weighted: Doubles, weight: float) -> None:
        """Add weighted values, and their weight, at positions that are distinct."""
        self.values[positions] += weighted
        self.weights[positions] += weight

    def mean(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the mean where a client held the weight, zero elsewhere, and where that is."""
        held = self.weights[:-1] > 0
        active = np.flatnonzero(held)  # few: three times as fast as the flags themselves
        mean = np.zeros(self.size, dtype=np.float32)
        mean[active] = self.values[active] / self.weights[active]
        return mean, held

    def dropped(self) -> npt.NDArray[np.bool_]:
        """Return where clients were offered the weight and none of them held it in the end."""
        return self.offered[:-1] & ~(self.weights[:-1] > 0)


class MaskedMean:
    """Averages sparse states as they arrive.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    cache : PositionCache
        Shared between rounds.
    """

    def __init__(self, spec: ModelSpec, cache: PositionCache) -> None:
        self.spec = spec
        self.cache = cache
        self.layers = {n: WeightedSum(layout.num_weights) for n, layout in spec.layouts.items()}
        self.dense: dict[str, Doubles] = {n: np.zeros(shape) for n, shape in spec.dense.items()}
        self._dense_weights: dict[str, Weights] = dict.fromkeys(spec.dense, 0.0)
        self.weight = 0.0

    def add(
        self,
        state: SparseState,
        weight: float,
        offered: Mapping[str, Slots] | None = None,
        untrained: Collection[str] = (),
    ) -> None:
        """Add one client's state.

        Parameters
        ----------
        state : SparseState
            What the client sends.
        weight : float
            Positive: its number of examples.
        offered : mapping of str to int32 array, optional
            Masks that it was sent, if it was free to change them.
        untrained : collection of str
            Sparse layers and dense tensors that it kept as they were sent.
        """
        for group, layers in self.spec.groups.items():
            for layer in layers:
                if layer in untrained:
                    continue
                total = self.layers[layer]
                positions = self.cache.positions(layer, state.masks[group])
                total.add(positions, weight * state.values[layer].astype(np.float64), weight)
                if offered is not None:
                    total.offered[self.cache.positions(layer, offered[group])] = True
        for name, values in state.dense.items():
            if name not in untrained:
                self._add_dense(name, weight * values.astype(np.float64), weight)
        self.weight += weight

    def add_sums(
        self, masks: Mapping[str, Slots], sums: Mapping[str, Doubles], weight: float
    ) -> None:
        """Add the weighted sums of several clients that hold one mask.

        Parameters
        ----------
        masks : mapping of str to int32 array
            Their mask.
        sums : mapping of str to float64 array
            Sums of weight times values: of each layer as ``sparse|NAME``, of each dense tensor as
            ``dense|NAME``; those that they did not train are left out.
        weight : float
            Sum of their weights.
        """
        for group, layers in self.spec.groups.items():
            for layer in layers:
                total = sums.get(f"sparse|{layer}")
                if total is not None:
                    positions = self.cache.positions(layer, masks[group])
                    self.layers[layer].add(positions, total, weight)
        for name in self.dense:
            total = sums.get(f"dense|{name}")
            if total is not None:
                self._add_dense(name, total, weight)
        self.weight += weight

    def dense_mean(self) -> dict[str, Floats]:
        """Return the weighted mean of every dense tensor, over the clients that trained it.

        A weight of it that none of them held is zero.
        """
        means = {}
        for name, weights in self._dense_weights.items():
            if isinstance(weights, float):
                if weights > 0:
                    means[name] = (self.dense[name] / weights).astype(np.float32)
            else:
                means[name] = (self.dense[name] / np.maximum(weights, 1e-300)).astype(np.float32)
        return means

    def dense_held(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Return where clients held a dense tensor, of those that narrower models hold in part."""
        parts = self._dense_weights.items()
        return {name: it > 0 for name, it in parts if not isinstance(it, float)}

    def _add_dense(self, name: str, weighted: Doubles, weight: float) -> None:
        """Add weighted values of a dense tensor: all of it, or the corner of a narrower model."""
        held, total = self._dense_weights[name], self.dense[name]
        if weighted.shape == total.shape:
            total += weighted
            self._dense_weights[name] = held + weight
            return
        if isinstance(held, float):
            held = self._dense_weights[name] = np.full(total.shape, held)
        total[corner(weighted.shape)] += weighted
        held[corner(weighted.shape)] += weight
