"""Sums of the updates of each tier: checked and summed where they are made.

A tier is of clients that hold one mask, or one width, and keep the same segments frozen.
:class:`~mest_fed.server.aggregation.masked.MaskedMean` joins the sums.
"""

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from mest_fed.errors import WireError
from mest_fed.server.aggregation.averaging import ArraySum
from mest_fed.server.aggregation.clipping import NormClipping
from mest_fed.server.update_validator import Counts, read_counts, read_update
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.training import objective_of
from mest_fed.wire import mask_hash
from mest_fed.wire.records import content_bytes

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
    specs : mapping of float to ModelSpec
        Density -> specification, where a tier's model is narrower.
    epochs : int
        How often each example may be presented.
    task : tuple of (str, str)
        Name and options of what is learned, as in the configuration.
    """

    clip: NormClipping
    offered: Mapping[float, SparseState]
    nodes: Mapping[int, CohortMember]
    untrained: Mapping[int, frozenset[str]] = field(default_factory=dict)
    specs: Mapping[float, ModelSpec] = field(default_factory=dict)
    epochs: int = 1
    task: tuple[str, str] = ("classification", "")
    total: TierSums | None = field(default=None, init=False)
    _hashes: dict[float, bytes] = field(default_factory=dict, init=False)

    def map(self, reply: Message) -> tuple[TierSums | None, Message]:
        """Check a reply and take its values out."""
        node = self.nodes[reply.metadata.src_node_id]
        density = node.density
        spec = self.specs.get(density, self.clip.spec)
        untrained = self.untrained.get(node.frozen, frozenset())
        size = content_bytes(reply.content)
        try:
            counts = self._counts(reply, node.examples)
            state = read_update(
                reply,
                spec,
                self.offered[density],
                mask_may_change=False,
                sent_hash=self._hash_of(density),
                frozen=untrained,
            )
        except WireError as error:
            facts = ConfigRecord({REASON: str(error), "bytes": size})
            return None, _with(reply, RecordDict({FACTS: facts}))
        state, norm = self.clip(state, self.offered[density])
        said = {"density": state.density(spec), "norm": norm, "bytes": size}
        facts = ConfigRecord(said)
        metrics = reply.content.metric_records["metrics"]
        left = _with(reply, RecordDict({"metrics": metrics, FACTS: facts}))
        arrays = _arrays(state, untrained)
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
