"""What a client sends of a round: its weights on the mask, or the slopes of its steps."""

from collections.abc import Collection

from mest_fed.client.local_round import ClientState, RoundResult
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.wire import encode
from mest_fed.wire.payload import Payload
from mest_fed.wire.slopes import write_slopes


def write_update(
    task: Task,
    result: RoundResult,
    received: SparseState,
    kept: ClientState,
    *,
    known_hash: bytes | None = None,
    frozen: Collection[str] = frozenset(),
) -> Payload:
    """Write the update of a round, and keep what a lossy format leaves unsent.

    Parameters
    ----------
    task : Task
        Of this device's width.
    result : RoundResult
        What the round gave.
    received : SparseState
        What was trained on.
    kept : ClientState
        Of the client.
    known_hash : bytes, optional
        Hash of the masks received, which the server holds; without it all masks travel.
    frozen : collection of str
        What the device did not train, of a round in which masks stay: it is left out.
    """
    if task.config.wire.slopes:
        return write_slopes(result.slopes)
    payload, kept.residual = encode(
        result.state,
        task.spec,
        values=task.config.wire.upload,
        known=None if known_hash is None else received.masks,
        known_hash=known_hash or b"",
        reference=received,
        residual=kept.residual,
        frozen=frozen,
    )
    return payload
