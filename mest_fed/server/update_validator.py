"""What the server accepts: strict checks on every reply, each of which costs only its sender."""

from collections.abc import Collection
from dataclasses import dataclass

from flwr.app import Message

from mest_fed.errors import WireError
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.training.metrics import Metrics
from mest_fed.training.objective import Objective
from mest_fed.training.trainer import CLASSIFICATION
from mest_fed.wire import decode, mask_hash, same_masks
from mest_fed.wire.records import EXAMPLES, from_record, read_totals

#: The largest magnitude of a weight or statistic. The server's optimizer squares differences of
#: two, which must stay finite in float32.
LARGEST_WEIGHT = 1e18


@dataclass(frozen=True)
class Counts:
    """A reply's metrics, checked.

    Parameters
    ----------
    examples : int
        Training (or held-out) examples of the node.
    totals : Metrics
        Sums over what it presented of them.
    """

    examples: int
    totals: Metrics


def read_counts(
    reply: Message, expected_examples: int, epochs: int = 1, objective: Objective = CLASSIFICATION
) -> Counts:
    """Read a reply's metrics.

    Parameters
    ----------
    reply : Message
        From a client.
    expected_examples : int
        Examples of the node.
    epochs : int
        How often it may have presented each.
    objective : Objective
        What was learned.

    Raises
    ------
    WireError
        If one is missing, of the wrong type or impossible.
    """
    metrics = reply.content.metric_records.get("metrics")
    if metrics is None:
        raise WireError("the reply has no metrics")
    totals = read_totals(metrics, objective)
    if metrics[EXAMPLES] != expected_examples:
        raise WireError(f"num-examples = {metrics[EXAMPLES]}, but the node has {expected_examples}")
    if totals.examples > epochs * expected_examples:
        raise WireError(
            f"{totals.examples} presented, more than {epochs} times {expected_examples} examples"
        )
    return Counts(expected_examples, totals)


def read_update(
    reply: Message,
    spec: ModelSpec,
    sent: SparseState,
    *,
    mask_may_change: bool,
    sent_hash: bytes = b"",
    frozen: Collection[str] = frozenset(),
) -> SparseState:
    """Decode a training reply.

    Parameters
    ----------
    reply : Message
        From a client.
    spec : ModelSpec
        Of the model.
    sent : SparseState
        What the client was sent.
    mask_may_change : bool
        Whether the client was asked to mutate; if so its mask may differ but not grow.
    sent_hash : bytes
        The hash of the masks that it was sent, where the caller has it: it is the same for all
        clients of a tier.
    frozen : collection of str
        Sparse layers and dense tensors that the client keeps as they were sent, and may leave out.

    Raises
    ------
    WireError
        If anything about the update is wrong.
    """
    state = decode(
        from_record(reply.content),
        spec,
        known={sent_hash or mask_hash(sent.masks): sent.masks},
        reference=sent,
        max_active={group: len(slots) for group, slots in sent.masks.items()},
        frozen=frozen,
    )
    check_magnitude(state)
    if not mask_may_change and not same_masks(state.masks, sent.masks):
        raise WireError("the mask is not the one that was sent, and no mutation was asked for")
    return state


def check_magnitude(state: SparseState) -> None:
    """Check that no number of an update is too large for the server to compute with.

    Raises
    ------
    WireError
        If one is, or is none.
    """
    for name, values in (state.values | state.dense).items():
        if values.size and not max(values.max(), -values.min()) <= LARGEST_WEIGHT:
            raise WireError(f"{name} has a number beyond {LARGEST_WEIGHT:g}")
