"""The coordinate-wise trimmed mean, over the clients that hold each weight.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (2018),
definition 2, with the clients that hold a weight in the place of all. A weight that h clients hold
with the values x_1 <= ... <= x_h becomes, with k = floor(trim h),

    (x_{k+1} + ... + x_{h-k}) / (h - 2 k).

So up to k clients that send anything cannot move it beyond what the others sent. All updates count
the same, as in the paper: an example count is what a client says of itself, and would let one of
them weigh as much as it likes. A weight with fewer than 1 / trim holders is not trimmed.

The sums are of sorted values, so that the order of the clients does not show in the bits.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mest_fed.config.sections import ServerSection
from mest_fed.server.aggregation.aggregate import Aggregate
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState

#: Numbers that are sorted at a time, of all clients together: 16 MB.
_AT_ONCE = 1 << 22
#: What a client holds of a tensor: increasing positions in it, and the values there.
Held = tuple[npt.NDArray[np.int64], Floats]


def trimmed_mean(
    clients: list[Held], size: int, trim: float
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the trimmed mean of each weight of a tensor.

    Parameters
    ----------
    clients : list of (int64 array, float32 array)
        Of each client the increasing positions that it holds, below ``size``, and its finite
        values there.
    size : int
        Weights of the tensor.
    trim : float
        Share in [0, 0.5) of the holders that is left out at either end, rounded down.

    Returns
    -------
    mean : float32 array
        Shape ``(size,)``; zero where no client holds the weight.
    held : bool array
        Where a client does.
    """
    held, mean = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
    for positions, _ in clients:
        held[positions] = True
    where = np.flatnonzero(held)
    step = max(1, _AT_ONCE // max(1, len(clients)))
    for start in range(0, len(where), step):
        block = where[start : start + step]
        mean[block] = _of_table(_table(clients, block), trim)
    return mean, held


def _table(clients: list[Held], block: npt.NDArray[np.int64]) -> Floats:
    """Return the values of each weight of a block in a row; infinity for who does not hold it."""
    table = np.full((len(block), len(clients)), np.inf, dtype=np.float32)
    for column, (positions, values) in enumerate(clients):
        first, end = np.searchsorted(positions, (block[0], block[-1] + 1))
        table[np.searchsorted(block, positions[first:end]), column] = values[first:end]
    return table


def _of_table(table: Floats, trim: float) -> npt.NDArray[np.float64]:
    table.sort(axis=1)
    holders = np.isfinite(table).sum(axis=1)
    # The small term is for products such as 0.29 * 100, which is below 29.
    cut = np.minimum(np.floor(trim * holders + 1e-9).astype(np.int64), (holders - 1) // 2)
    total = np.zeros(len(table))
    for rank in range(table.shape[1]):
        kept = (rank >= cut) & (rank < holders - cut)
        np.add(total, table[:, rank], out=total, where=kept)
    result: npt.NDArray[np.float64] = total / (holders - 2 * cut)
    return result


@dataclass
class TrimmedLayer:
    """The updates of one sparse layer."""

    name: str
    cache: PositionCache
    trim: float
    updates: list[tuple[Slots, Floats]] = field(default_factory=list)
    offers: dict[bytes, Slots] = field(default_factory=dict)

    def mean(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the trimmed mean where a client held the weight, zero elsewhere; where that is."""
        return trimmed_mean(list(self._held()), self._size, self.trim)

    def dropped(self) -> npt.NDArray[np.bool_]:
        """Return where clients were offered the weight and none of them held it in the end."""
        flags = np.zeros(self._size + 1, dtype=np.bool_)
        for slots in self.offers.values():
            flags[self.cache.positions(self.name, slots)] = True
        for slots in {slots.tobytes(): slots for slots, _ in self.updates}.values():
            flags[self.cache.positions(self.name, slots)] = False
        return flags[:-1]

    @property
    def _size(self) -> int:
        return self.cache.spec.layouts[self.name].num_weights

    def _held(self) -> Iterator[Held]:
        sorted_masks: dict[bytes, tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]] = {}
        for slots, values in self.updates:
            key = slots.tobytes()
            if key not in sorted_masks:
                positions = self.cache.positions(self.name, slots).ravel()
                order = np.argsort(positions, kind="stable")
                order = order[: np.searchsorted(positions, self._size, sorter=order)]  # no padding
                sorted_masks[key] = positions[order], order
            positions, order = sorted_masks[key]
            yield positions, values.ravel()[order]


class TrimmedMean:
    """Keeps the updates of a round, and takes the trimmed mean of each weight.

    Its memory is that of the round's updates, as many as the cohort has clients, twice for the
    layer that is being averaged, and 16 MB to sort.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    cache : PositionCache
        Shared between rounds.
    trim : float
        In [0, 0.5).

    Attributes
    ----------
    weight : float
        Updates that were added.
    layers : dict of str to TrimmedLayer
        Sparse layer -> its updates.
    """

    def __init__(self, spec: ModelSpec, cache: PositionCache, trim: float) -> None:
        self.spec = spec
        self.trim = trim
        self.layers = {name: TrimmedLayer(name, cache, trim) for name in spec.layouts}
        self.weight = 0.0
        self._dense: list[dict[str, Floats]] = []

    def add(
        self,
        state: SparseState,
        weight: float,
        offered: Mapping[str, Slots] | None = None,
        untrained: Collection[str] = (),
    ) -> None:
        """Add one client's state; its weight is not used.

        Parameters
        ----------
        state, offered, untrained : SparseState, mapping of str to int32 array, collection of str
            As for :meth:`MaskedMean.add`.
        weight : float
            Not used: all updates count the same.
        """
        del weight
        self.weight += 1.0
        for group, layers in self.spec.groups.items():
            for name in layers:
                if name in untrained:
                    continue
                layer = self.layers[name]
                layer.updates.append((state.masks[group], state.values[name]))
                if offered is not None:
                    layer.offers[offered[group].tobytes()] = offered[group]
        self._dense.append({n: it for n, it in state.dense.items() if n not in untrained})

    def dense_mean(self) -> dict[str, Floats]:
        """Return the trimmed mean of every dense tensor, over the clients that trained it."""
        found = {}
        for name, shape in self.spec.dense.items():
            size = int(np.prod(shape))
            everywhere = np.arange(size)
            clients = [(everywhere, it[name].ravel()) for it in self._dense if name in it]
            if not clients:
                continue
            found[name] = trimmed_mean(clients, size, self.trim)[0].reshape(shape)
        return found

    def dense_held(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Return nothing: all clients hold all of a dense tensor."""
        return {}


def build_aggregate(server: ServerSection, spec: ModelSpec, cache: PositionCache) -> Aggregate:
    """Return the empty aggregate that the configuration asks for: trimmed, or the mean of all."""
    return TrimmedMean(spec, cache, server.trim) if server.trim else MaskedMean(spec, cache)
