"""Streamed, mask-aware, example-weighted averaging.

Each weight is averaged over the clients that hold it, weighted by their examples (the rule of
FedDST, Bibikar et al. 2022, algorithm 1). An update costs O(its active weights). A weight that all
who were offered it have dropped is zero; one that no client was offered is not touched.

A layer that a client keeps frozen came back as it was sent: it is averaged over those who trained
it (as in FedOLF, Niu et al. 2025, arXiv 2512.23200), and stays as it is where none did.
"""

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, RecordDict

from mest_fed.errors import WireError
from mest_fed.server.aggregation.averaging import ArraySum
from mest_fed.server.aggregation.clipping import NormClipping
from mest_fed.server.update_validator import Counts, read_counts, read_update
from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.training import objective_of
from mest_fed.wire import mask_hash
from mest_fed.wire.records import content_bytes

Doubles = npt.NDArray[np.float64]

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
        self._dense_weights = dict.fromkeys(spec.dense, 0.0)
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
                self.dense[name] += weight * values.astype(np.float64)
                self._dense_weights[name] += weight
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
                self.dense[name] += total
                self._dense_weights[name] += weight
        self.weight += weight

    def dense_mean(self) -> dict[str, Floats]:
        """Return the weighted mean of every dense tensor, over the clients that trained it."""
        return {
            name: (self.dense[name] / weight).astype(np.float32)
            for name, weight in self._dense_weights.items()
            if weight > 0
        }


#: The record of facts in what is left of a reply; in it, why the reply was rejected, if it was.
FACTS, REASON = "summed", "reason"


#: What the clients of one sum have in common: density, and segments that they keep frozen.
Tier = tuple[float, int]


class TierSums:
    """Sums of the updates of each tier. See :class:`PartialAggregate`."""

    def __init__(self, tiers: dict[Tier, ArraySum]) -> None:
        self.tiers = tiers

    def add(self, other: "TierSums") -> "TierSums":
        """Return the sum of both; this one is edited."""
        for tier, total in other.tiers.items():
            mine = self.tiers.get(tier)
            self.tiers[tier] = total if mine is None else mine.add(total)
        return self


@dataclass(frozen=True)
class CohortMember:
    """What of a node says how its reply is checked and summed.

    Parameters
    ----------
    density : float
        Of its plan.
    examples : int
        Its number of examples.
    frozen : int
        Segments that its plan does not train.
    """

    density: float
    examples: int
    frozen: int = 0


@dataclass
class MaskedAggregator:
    """Checks and sums the replies of a round in which masks stay. See :class:`WorkerAggregator`.

    Parameters
    ----------
    clip : NormClipping
        Clips each update.
    offered : mapping of float to SparseState
        What each tier was sent, by density.
    nodes : mapping of int to CohortMember
        The cohort by its nodes' ids.
    untrained : mapping of int to frozenset of str
        Number of frozen segments -> what is then not trained, as for :meth:`MaskedMean.add`.
    epochs : int
        How often each example may be presented.
    task : tuple of (str, str)
        Name and options of what is learned, as in the configuration.
    """

    clip: NormClipping
    offered: Mapping[float, SparseState]
    nodes: Mapping[int, CohortMember]
    untrained: Mapping[int, frozenset[str]] = field(default_factory=dict)
    epochs: int = 1
    task: tuple[str, str] = ("classification", "")
    total: TierSums | None = field(default=None, init=False)
    _hashes: dict[float, bytes] = field(default_factory=dict, init=False)

    def map(self, reply: Message) -> tuple[TierSums | None, Message]:
        """Check a reply and take its values out."""
        node = self.nodes[reply.metadata.src_node_id]
        density = node.density
        size = content_bytes(reply.content)
        try:
            counts = self._counts(reply, node.examples)
            state = read_update(
                reply,
                self.clip.spec,
                self.offered[density],
                mask_may_change=False,
                sent_hash=self._hash_of(density),
            )
        except WireError as error:
            facts = ConfigRecord({REASON: str(error), "bytes": size})
            return None, _with(reply, RecordDict({FACTS: facts}))
        state, norm = self.clip(state, self.offered[density])
        said = {"density": state.density(self.clip.spec), "norm": norm, "bytes": size}
        facts = ConfigRecord(said)
        metrics = reply.content.metric_records["metrics"]
        left = _with(reply, RecordDict({"metrics": metrics, FACTS: facts}))
        arrays = _arrays(state, self.untrained.get(node.frozen, frozenset()))
        return TierSums({(density, node.frozen): ArraySum(arrays, counts.examples)}), left

    def finalize(self, total: TierSums | None) -> None:
        """Keep the sum."""
        self.total = total

    def bytes_of(self, reply: Message) -> int:
        """Return the bytes that a reply had before :meth:`map`."""
        return int(_facts(reply)["bytes"])

    def read(self, reply: Message) -> tuple[Counts, float, float]:
        """Read the metrics of a reply that was summed, and its update's density and norm.

        Raises
        ------
        WireError
            If the reply was rejected.
        """
        facts = _facts(reply)
        if REASON in facts:
            raise WireError(str(facts[REASON]))
        examples = self.nodes[reply.metadata.src_node_id].examples
        return self._counts(reply, examples), float(facts["density"]), float(facts["norm"])

    def _hash_of(self, density: float) -> bytes:
        """Return the hash of the masks that a tier was sent, which is computed once."""
        if density not in self._hashes:
            self._hashes[density] = mask_hash(self.offered[density].masks)
        return self._hashes[density]

    def _counts(self, reply: Message, examples: int) -> Counts:
        return read_counts(reply, examples, self.epochs, objective_of(*self.task))


def _with(reply: Message, content: RecordDict) -> Message:
    other = copy(reply)
    other.content = content
    return other


def _facts(reply: Message) -> ConfigRecord:
    return reply.content.config_records[FACTS]


def _arrays(state: SparseState, untrained: Collection[str]) -> dict[str, np.ndarray]:
    kinds = ("dense", state.dense), ("sparse", state.values)
    return {
        f"{kind}|{name}": values
        for kind, tensors in kinds
        for name, values in tensors.items()
        if name not in untrained
    }
