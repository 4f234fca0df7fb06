"""Clients' work as it travels between processes.

Array records that many messages carry go once. The data of arrays goes beside the pickle, as
buffers, so that it is copied only into the shared memory and out of it.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Metadata, MetricRecord, RecordDict

from simulations.engine.fate import Conditions, Settled
from simulations.engine.flower_internals import bare_array, rebuild_message
from simulations.engine.lane import Lane, Span
from simulations.engine.worker import Block, Job, Outcome

#: Data below this many bytes stays in the pickle.
BUFFER_FROM_BYTES = 4096
#: Array records below this many bytes travel in each parcel.
SHARE_FROM_BYTES = 16_384
#: Array records that are remembered, in case a next message carries them too.
REMEMBERED = 32


class PackedArrays(NamedTuple):
    """An array record with its data as buffers."""

    names: list[str]
    kinds: list[tuple[str, tuple[int, ...], str]]
    data: list[bytes | np.ndarray | pickle.PickleBuffer]


class Parcel(NamedTuple):
    """A job; a number stands for an array record that many parcels share."""

    metadata: Metadata
    records: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord | int]]
    context: Context
    conditions: Conditions | None
    seed: int


class Return(NamedTuple):
    """An outcome on its way back.

    Records of the state that are as they were do not travel: only their names do.
    """

    metadata: Metadata
    error: Error | None
    records: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord]]
    seconds: float
    timing: Any
    keeps_state: bool
    busy_seconds: float
    state: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord | None]]


class Freight(NamedTuple):
    """Pickles of the returns and of their sum, and the buffers of both: in a lane, or beside.

    The first ``own`` buffers are of the returns.
    """

    returns: bytes
    partial: bytes
    own: int
    buffers: list[Span] | list[np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of it all."""
        beside = (b.size if isinstance(b, Span) else b.nbytes for b in self.buffers)
        return len(self.returns) + len(self.partial) + sum(beside)


def _shared(data: bytes) -> Any:
    """Have Ray put data into shared memory: it does so with arrays."""
    return np.frombuffer(data, np.uint8)


def _beside(data: bytes) -> Any:
    """Have data go beside the pickle, out of which it comes as the bytes that were read."""
    return pickle.PickleBuffer(data)


#: Names and kinds of arrays, and which bytes they hold: what tells one record from another.
Fingerprint = tuple[tuple[str, str, tuple[int, ...], str, int], ...]


def fingerprint(record: ArrayRecord) -> Fingerprint:
    """Return what two records have in common that hold the same bytes, as long as those live.

    Each message has a record of its own, so that the records themselves tell nothing.
    """
    return tuple(
        (name, array.dtype, array.shape, array.stype, id(array.data))
        for name, array in record.items()
    )


class RecordStore:
    """Puts array records into a shared store, each content once.

    Parameters
    ----------
    put : callable
        Stores packed arrays and returns a reference to them.
    """

    def __init__(self, put: Callable[[PackedArrays], Any]) -> None:
        self._put = put
        # The bytes are kept beside the reference, so that their id() stays their own.
        self._known: OrderedDict[Fingerprint, tuple[list[bytes], Any]] = OrderedDict()

    def reference(self, record: ArrayRecord, key: Fingerprint) -> Any:
        """Return the reference of a record, which is put if its content is new."""
        if key not in self._known:
            data = [array.data for array in record.values()]
            self._known[key] = (data, self._put(_pack_arrays(record)))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][1]


def pack_jobs(jobs: Iterable[Job], store: RecordStore) -> tuple[list[Parcel], list[Any]]:
    """Return the parcels of a chunk and the references of the array records they share."""
    numbers: dict[Fingerprint, int] = {}
    references: list[Any] = []
    parcels = []
    for job in jobs:
        records: list[tuple[str, Any]] = []
        for name, record in job.message.content.items():
            if not isinstance(record, ArrayRecord) or record.count_bytes() < SHARE_FROM_BYTES:
                records.append((name, _pack(record)))
                continue
            key = fingerprint(record)
            if key not in numbers:
                numbers[key] = len(references)
                references.append(store.reference(record, key))
            records.append((name, numbers[key]))
        metadata = job.message.metadata
        parcels.append(Parcel(metadata, records, job.context, job.conditions, job.seed))
    return parcels, references


def unpack_jobs(parcels: Iterable[Parcel], shared: Sequence[PackedArrays]) -> list[Job]:
    """Return the jobs of a chunk."""
    shared_records = [_unpack(packed) for packed in shared]
    jobs = []
    for metadata, records, context, conditions, seed in parcels:
        content = RecordDict()
        for name, record in records:
            content[name] = shared_records[record] if isinstance(record, int) else _unpack(record)
        jobs.append(Job(rebuild_message(metadata, content), context, conditions, seed=seed))
    return jobs


def pack_block(jobs: Sequence[Job], block: Block, lane: Lane | None) -> Freight:
    """Return what came of a chunk as it travels: through the lane if it has room."""
    returns = [_pack_outcome(*pair) for pair in zip(jobs, block.outcomes, strict=True)]
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps((returns, block.tracebacks), 5, buffer_callback=buffers.append)
    own = len(buffers)
    partial = pickle.dumps(block.partial, 5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    spans = None if lane is None else lane.write(raw)
    return Freight(pickled, partial, own, spans or [np.frombuffer(view, np.uint8) for view in raw])


def unpack_block(freight: Freight, jobs: Sequence[Job], lane: Lane | None) -> Block:
    """Return what came of a chunk of jobs."""
    own, summed = freight.buffers[: freight.own], freight.buffers[freight.own :]
    # Pickled by our own worker; Ray, too, would have unpickled it.
    returns, tracebacks = pickle.loads(
        freight.returns, buffers=[bytes(_view(item, lane)) for item in own]
    )
    # Sums are added to in place.
    mutable = [bytearray(_view(item, lane)) for item in summed]
    partial = pickle.loads(freight.partial, buffers=mutable)
    pairs = zip(jobs, returns, strict=True)
    return Block([_unpack_outcome(job, parcel) for job, parcel in pairs], partial, tracebacks)


def _view(item: Span | np.ndarray, lane: Lane | None) -> memoryview:
    if isinstance(item, Span):
        assert lane is not None
        return lane.view(item)
    return memoryview(item)


def _pack_outcome(job: Job, outcome: Outcome) -> Return:
    settled, before = outcome.settled, job.context.state
    reply = settled.reply
    error = reply.error if reply.has_error() else None
    content = RecordDict() if error is not None else reply.content
    state = [
        (name, None if before.get(name) == record else _pack(record, _beside))
        for name, record in outcome.state.items()
    ]
    return Return(
        reply.metadata,
        error,
        [(name, _pack(record, _beside)) for name, record in content.items()],
        settled.seconds,
        settled.timing,
        settled.keeps_state,
        settled.busy_seconds,
        state,
    )


def _unpack_outcome(job: Job, parcel: Return) -> Outcome:
    if parcel.error is not None:
        reply = rebuild_message(parcel.metadata, parcel.error)
    else:
        content = RecordDict({name: _unpack(record) for name, record in parcel.records})
        reply = rebuild_message(parcel.metadata, content)
    before = job.context.state
    state = RecordDict(
        {n: before[n] if record is None else _unpack(record) for n, record in parcel.state}
    )
    settled = Settled(reply, parcel.seconds, parcel.timing, parcel.keeps_state, parcel.busy_seconds)
    return Outcome(settled, state)


def _pack(record: Any, buffer: Callable[[bytes], Any] = _shared) -> Any:
    return _pack_arrays(record, buffer) if isinstance(record, ArrayRecord) else record


def _unpack(record: Any) -> Any:
    return _unpack_arrays(record) if isinstance(record, PackedArrays) else record


def _pack_arrays(record: ArrayRecord, buffer: Callable[[bytes], Any] = _shared) -> PackedArrays:
    arrays = record.values()
    kinds = [(array.dtype, array.shape, array.stype) for array in arrays]
    data = [array.data for array in arrays]
    return PackedArrays(
        list(record),
        kinds,
        [item if len(item) < BUFFER_FROM_BYTES else buffer(item) for item in data],
    )


def _unpack_arrays(packed: PackedArrays) -> ArrayRecord:
    record = ArrayRecord()
    for name, kind, data in zip(*packed, strict=True):
        record[name] = bare_array(*kind, data if isinstance(data, bytes) else data.tobytes())
    return record
