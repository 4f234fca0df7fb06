"""Partial sums of sparse updates: what the server would check and add up, done in the workers.

Devices of a tier hold one mask while only the server mutates, so their values are added position by
position, and a sum is no larger than one update of each tier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from mest_fed.errors import WireError
from mest_fed.nn import ModelSpec, SparseState
from mest_fed.wire.size import content_bytes
from server.array_sum import ArraySum
from server.uplink import Counts, read_counts, read_update

#: In what is left of a reply: that it was summed, or why it was rejected.
SUMMED, REJECTED = "summed", "rejected"


@dataclass(frozen=True)
class Update:
    """A reply that was accepted.

    Parameters
    ----------
    counts : Counts
        Its metrics.
    density : float
        Of what it brought.
    bytes_up : int
        Content of the reply.
    """

    counts: Counts
    density: float
    bytes_up: int


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
    """

    spec: ModelSpec
    offered: Mapping[float, SparseState]
    nodes: Mapping[int, tuple[float, int]]
    total: TierSums | None = field(default=None, init=False)

    def lift(self, reply: Message) -> tuple[TierSums | None, Message]:
        """Check a reply and take its values out."""
        density, examples = self.nodes[reply.metadata.src_node_id]
        size = content_bytes(reply.content)
        try:
            counts = read_counts(reply, examples)
            state = read_update(reply, self.spec, self.offered[density], mask_may_change=False)
        except WireError as error:
            facts = ConfigRecord({"reason": str(error), "bytes": size})
            reply.content = RecordDict({REJECTED: facts})
            return None, reply
        facts = ConfigRecord({"density": state.density(self.spec), "bytes": size})
        metrics = reply.content.metric_records["metrics"]
        reply.content = RecordDict({"metrics": metrics, SUMMED: facts})
        return TierSums({density: ArraySum(_arrays(state), counts.examples)}), reply

    def collect(self, total: TierSums | None) -> None:
        """Keep the sum."""
        self.total = total

    def read(self, reply: Message) -> Update:
        """Read what :meth:`lift` left of a reply.

        Raises
        ------
        WireError
            If the reply was rejected.
        """
        rejected = reply.content.config_records.get(REJECTED)
        if rejected is not None:
            raise WireError(str(rejected["reason"]))
        facts = reply.content.config_records[SUMMED]
        _, examples = self.nodes[reply.metadata.src_node_id]
        counts = read_counts(reply, examples)
        return Update(counts, float(facts["density"]), int(facts["bytes"]))


def _arrays(state: SparseState) -> dict[str, np.ndarray]:
    dense = {f"dense|{name}": values for name, values in state.dense.items()}
    return dense | {f"sparse|{layer}": values for layer, values in state.values.items()}
