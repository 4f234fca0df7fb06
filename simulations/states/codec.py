"""A client's state in two parts: what is its own, and large array records, which many may share."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from flwr.app import ArrayRecord, RecordDict

from simulations.engine.flower_internals import context_state_from_bytes, context_state_to_bytes

#: Array records from this many bytes on are stored once for all clients that hold the same.
SHARE_FROM_BYTES = 4096
_ONLY = "arrays"


class Row(NamedTuple):
    """A state as it is stored.

    Parameters
    ----------
    own : bytes
        The state as Flower's protobuf; the shared records in it are empty.
    shared : dict of str to str
        Name of a shared record -> hash of its content.
    """

    own: bytes
    shared: dict[str, str]


def to_row(state: RecordDict) -> tuple[Row, dict[str, ArrayRecord]]:
    """Return a state as it is stored, and its shared records by hash."""
    own, shared, records = RecordDict(), {}, {}
    for name, record in state.items():
        if isinstance(record, ArrayRecord) and record.count_bytes() >= SHARE_FROM_BYTES:
            shared[name] = key = content_hash(record)
            records[key] = record
            record = ArrayRecord()
        own[name] = record
    return Row(context_state_to_bytes(own), shared), records


def from_row(row: Row, record_of: Callable[[str], ArrayRecord]) -> RecordDict:
    """Return the state of a row; ``record_of`` finds a shared record by its hash."""
    state = context_state_from_bytes(row.own)
    for name, key in row.shared.items():
        state[name] = record_of(key)
    return state


def content_hash(record: ArrayRecord) -> str:
    """Return a hash of an array record: 128 bits of SHA-256 over names, kinds and data."""
    digest = hashlib.sha256()
    for name, array in record.items():
        digest.update(repr((name, array.dtype, array.shape, array.stype, len(array.data))).encode())
        digest.update(array.data)
    return digest.hexdigest()[:32]


def record_to_bytes(record: ArrayRecord) -> bytes:
    """Write one array record."""
    return context_state_to_bytes(RecordDict({_ONLY: record}))


def record_from_bytes(data: bytes) -> ArrayRecord:
    """Read what :func:`record_to_bytes` wrote."""
    return context_state_from_bytes(data).array_records[_ONLY]
