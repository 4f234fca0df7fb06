"""Partial sums of sparse updates: what the server would check and add up, done in the workers.

Devices of a tier hold one mask while only the server mutates, so their values are added position by
position, and a sum is no larger than one update of each tier.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from mest_fed.errors import WireError
from mest_fed.nn import ModelSpec, SparseState
from mest_fed.wire.size import content_bytes
from server.array_sum import ArraySum
from server.uplink import Counts, read_counts, read_update

#: The record of facts in what is left of a reply; in it, why the reply was rejected, if it was.
FACTS, REASON = "summed", "reason"


class TierSums:
    """Sums of the updates of each tier. See :class:`mest_fed.folding.Partial`."""

    def __init__(self, tiers: dict[float, ArraySum]) -> None:
        self.tiers = tiers

    def add(self, other: "TierSums") -> "TierSums":
        """Return the sum of both; this one is edited."""
        for density, total in other.tiers.items():
            mine = self.tiers.get(density)
            self.tiers[density] = total if mine is None else mine.add(total)
        return self


@dataclass
class MaskedFold:
    """Checks and sums the replies of a round in which masks stay. See :class:`Fold`.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    offered : mapping of float to SparseState
        What each tier was sent, by density.
    nodes : mapping of int to (float, int)
        Density and number of examples of each node of the cohort.
    epochs : int
        How often each example may be presented.
    """

    spec: ModelSpec
    offered: Mapping[float, SparseState]
    nodes: Mapping[int, tuple[float, int]]
    epochs: int = 1
    total: TierSums | None = field(default=None, init=False)

    def lift(self, reply: Message) -> tuple[TierSums | None, Message]:
        """Check a reply and take its values out."""
        density, examples = self.nodes[reply.metadata.src_node_id]
        size = content_bytes(reply.content)
        try:
            counts = read_counts(reply, examples, self.epochs)
            state = read_update(reply, self.spec, self.offered[density], mask_may_change=False)
        except WireError as error:
            facts = ConfigRecord({REASON: str(error), "bytes": size})
            return None, _with(reply, RecordDict({FACTS: facts}))
        facts = ConfigRecord({"density": state.density(self.spec), "bytes": size})
        metrics = reply.content.metric_records["metrics"]
        left = _with(reply, RecordDict({"metrics": metrics, FACTS: facts}))
        return TierSums({density: ArraySum(_arrays(state), counts.examples)}), left

    def collect(self, total: TierSums | None) -> None:
        """Keep the sum."""
        self.total = total

    def bytes_of(self, reply: Message) -> int:
        """Return the bytes that a reply had before :meth:`lift`."""
        return int(_facts(reply)["bytes"])

    def read(self, reply: Message) -> tuple[Counts, float]:
        """Read the metrics of a reply that was summed, and the density of its update.

        Raises
        ------
        WireError
            If the reply was rejected.
        """
        facts = _facts(reply)
        if REASON in facts:
            raise WireError(str(facts[REASON]))
        _, examples = self.nodes[reply.metadata.src_node_id]
        return read_counts(reply, examples, self.epochs), float(facts["density"])


def _with(reply: Message, content: RecordDict) -> Message:
    other = copy(reply)
    other.content = content
    return other


def _facts(reply: Message) -> ConfigRecord:
    return reply.content.config_records[FACTS]


def _arrays(state: SparseState) -> dict[str, np.ndarray]:
    dense = {f"dense|{name}": values for name, values in state.dense.items()}
    return dense | {f"sparse|{layer}": values for layer, values in state.values.items()}
