"""Clients' work as it travels between processes.

Array records that many messages carry go once. The data of arrays goes beside the pickle, as
buffers, so that it is copied only into the shared memory and out of it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Metadata, MetricRecord, RecordDict

from simulations.engine.flower_internals import bare_array, rebuild_message
from simulations.engine.worker import Job, Outcome

#: Data below this many bytes stays in the pickle.
BUFFER_FROM_BYTES = 4096
#: Array records below this many bytes travel in each parcel.
SHARE_FROM_BYTES = 16_384
#: Array records that are remembered, in case a next message carries them too.
REMEMBERED = 16


class PackedArrays(NamedTuple):
    """An array record with its data as buffers."""

    names: list[str]
    kinds: list[tuple[str, tuple[int, ...], str]]
    data: list[bytes | np.ndarray]


class Parcel(NamedTuple):
    """A job; a number stands for an array record that many parcels share."""

    metadata: Metadata
    records: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord | int]]
    context: Context


class Return(NamedTuple):
    """An outcome on its way back."""

    metadata: Metadata
    error: Error | None
    records: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord]]
    state: RecordDict


class RecordStore:
    """Puts array records into a shared store, each object once.

    Parameters
    ----------
    put : callable
        Stores packed arrays and returns a reference to them.
    """

    def __init__(self, put: Callable[[PackedArrays], Any]) -> None:
        self._put = put
        # The record is kept beside its reference, so that its id() stays its own.
        self._known: OrderedDict[int, tuple[ArrayRecord, Any]] = OrderedDict()

    def reference(self, record: ArrayRecord) -> Any:
        """Return the reference of a record, which is put if it is new."""
        key = id(record)
        if key not in self._known:
            self._known[key] = (record, self._put(_pack_arrays(record)))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][1]


def pack_jobs(jobs: Iterable[Job], store: RecordStore) -> tuple[list[Parcel], list[Any]]:
    """Return the parcels of a chunk and the references of the array records they share."""
    numbers: dict[int, int] = {}
    references: list[Any] = []
    parcels = []
    for job in jobs:
        records: list[tuple[str, Any]] = []
        for name, record in job.message.content.items():
            if not isinstance(record, ArrayRecord) or record.count_bytes() < SHARE_FROM_BYTES:
                records.append((name, _pack(record)))
                continue
            if id(record) not in numbers:
                numbers[id(record)] = len(references)
                references.append(store.reference(record))
            records.append((name, numbers[id(record)]))
        parcels.append(Parcel(job.message.metadata, records, job.context))
    return parcels, references


def unpack_jobs(parcels: Iterable[Parcel], shared: Sequence[PackedArrays]) -> list[Job]:
    """Return the jobs of a chunk."""
    shared_records = [_unpack(packed) for packed in shared]
    jobs = []
    for metadata, records, context in parcels:
        content = RecordDict()
        for name, record in records:
            content[name] = shared_records[record] if isinstance(record, int) else _unpack(record)
        jobs.append(Job(rebuild_message(metadata, content), context))
    return jobs


def pack_outcome(outcome: Outcome) -> Return:
    """Return an outcome as it travels."""
    reply, state = outcome
    if reply.has_error():
        return Return(reply.metadata, reply.error, [], state)
    records = [(name, _pack(record)) for name, record in reply.content.items()]
    return Return(reply.metadata, None, records, state)


def unpack_outcome(parcel: Return) -> Outcome:
    """Return the outcome that :func:`pack_outcome` packed."""
    metadata, error, records, state = parcel
    if error is not None:
        return Outcome(rebuild_message(metadata, error), state)
    content = RecordDict({name: _unpack(record) for name, record in records})
    return Outcome(rebuild_message(metadata, content), state)


def _pack(record: Any) -> Any:
    return _pack_arrays(record) if isinstance(record, ArrayRecord) else record


def _unpack(record: Any) -> Any:
    return _unpack_arrays(record) if isinstance(record, PackedArrays) else record


def _pack_arrays(record: ArrayRecord) -> PackedArrays:
    arrays = record.values()
    kinds = [(array.dtype, array.shape, array.stype) for array in arrays]
    data = [array.data for array in arrays]
    return PackedArrays(
        list(record),
        kinds,
        [item if len(item) < BUFFER_FROM_BYTES else np.frombuffer(item, np.uint8) for item in data],
    )


def _unpack_arrays(packed: PackedArrays) -> ArrayRecord:
    record = ArrayRecord()
    for name, kind, data in zip(*packed, strict=True):
        record[name] = bare_array(*kind, data if isinstance(data, bytes) else data.tobytes())
    return record
