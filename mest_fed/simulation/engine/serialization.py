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

from mest_fed.server.flower_internals import bare_array, rebuild_message
from mest_fed.simulation.engine.client_runner import Block, Job, Outcome
from mest_fed.simulation.engine.interfaces import TaskConditions, TaskResult
from mest_fed.simulation.engine.shared_memory import SharedMemory, Span

#: Data below this many bytes stays in the pickle.
BUFFER_FROM_BYTES = 4096
#: Array records below this many bytes travel with each job that has them.
SHARE_FROM_BYTES = 16_384
#: Array records that are remembered, in case a next message carries them too.
REMEMBERED = 32


class PackedArrays(NamedTuple):
    """An array record with its data as buffers."""

    names: list[str]
    kinds: list[tuple[str, tuple[int, ...], str]]
    data: list[bytes | np.ndarray | pickle.PickleBuffer]


class EncodedJobs(NamedTuple):
    """A job; a number stands for an array record that many jobs share."""

    metadata: Metadata
    records: list[tuple[str, PackedArrays | MetricRecord | ConfigRecord | int]]
    context: Context
    conditions: TaskConditions | None
    seed: int


class EncodedResults(NamedTuple):
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


class EncodedRecords(NamedTuple):
    """Pickles of the returns and of their sum, and the buffers of both, in shared memory or not.

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
    """Send buffers out of band of the pickle; reading gives the same bytes."""
    return pickle.PickleBuffer(data)


#: Names and kinds of arrays, and which bytes they hold: what tells one record from another.
Fingerprint = tuple[tuple[str, str, tuple[int, ...], str, int], ...]


def fingerprint(record: ArrayRecord) -> Fingerprint:
    """Return what two records have in common that hold the same bytes, as long as those exist.

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


def pack_jobs(jobs: Iterable[Job], store: RecordStore) -> tuple[list[EncodedJobs], list[Any]]:
    """Return the encoded of a chunk and the references of the array records they share."""
    numbers: dict[Fingerprint, int] = {}
    references: list[Any] = []
    encoded = []
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
        encoded.append(EncodedJobs(metadata, records, job.context, job.conditions, job.seed))
    return encoded, references


def unpack_jobs(encoded: Iterable[EncodedJobs], shared: Sequence[PackedArrays]) -> list[Job]:
    """Return the jobs of a chunk."""
    shared_records = [_unpack(packed) for packed in shared]
    jobs = []
    for metadata, records, context, conditions, seed in encoded:
        content = RecordDict()
        for name, record in records:
            content[name] = shared_records[record] if isinstance(record, int) else _unpack(record)
        jobs.append(Job(rebuild_message(metadata, content), context, conditions, seed=seed))
    return jobs


def pack_block(
    jobs: Sequence[Job], block: Block, memory_file: SharedMemory | None
) -> EncodedRecords:
    """Return what came of a chunk as it travels: through the memory file if it has room."""
    returns = [_pack_outcome(*pair) for pair in zip(jobs, block.outcomes, strict=True)]
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps((returns, block.printed), 5, buffer_callback=buffers.append)
    own = len(buffers)
    partial = pickle.dumps(block.partial, 5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    spans = None if memory_file is None else memory_file.write(raw)
    return EncodedRecords(
        pickled, partial, own, spans or [np.frombuffer(view, np.uint8) for view in raw]
    )


def unpack_block(
    records: EncodedRecords, jobs: Sequence[Job], memory_file: SharedMemory | None
) -> Block:
    """Return what came of a chunk of jobs."""
    own, summed = records.buffers[: records.own], records.buffers[records.own :]
    # Pickled by our own worker; Ray, too, would have unpickled it.
    returns, printed = pickle.loads(
        records.returns, buffers=[bytes(_view(item, memory_file)) for item in own]
    )
    # Sums are added to in place.
    mutable = [bytearray(_view(item, memory_file)) for item in summed]
    partial = pickle.loads(records.partial, buffers=mutable)
    pairs = zip(jobs, returns, strict=True)
    outcomes = [_unpack_outcome(job, encoded) for job, encoded in pairs]
    return Block(outcomes, partial, printed)


def _view(item: Span | np.ndarray, memory_file: SharedMemory | None) -> memoryview:
    if isinstance(item, Span):
        assert memory_file is not None
        return memory_file.view(item)
    return memoryview(item.data)


def _pack_outcome(job: Job, outcome: Outcome) -> EncodedResults:
    task_result, before = outcome.task_result, job.context.state
    reply = task_result.reply
    error = reply.error if reply.has_error() else None
    content = RecordDict() if error is not None else reply.content
    state = [
        (name, None if before.get(name) == record else _pack(record, _beside))
        for name, record in outcome.state.items()
    ]
    return EncodedResults(
        reply.metadata,
        error,
        [(name, _pack(record, _beside)) for name, record in content.items()],
        task_result.seconds,
        task_result.timing,
        task_result.keeps_state,
        task_result.busy_seconds,
        state,
    )


def _unpack_outcome(job: Job, encoded: EncodedResults) -> Outcome:
    if encoded.error is not None:
        reply = rebuild_message(encoded.metadata, encoded.error)
    else:
        content = RecordDict({name: _unpack(record) for name, record in encoded.records})
        reply = rebuild_message(encoded.metadata, content)
    before = job.context.state
    state = RecordDict(
        {n: before[n] if record is None else _unpack(record) for n, record in encoded.state}
    )
    task_result = TaskResult(
        reply, encoded.seconds, encoded.timing, encoded.keeps_state, encoded.busy_seconds
    )
    return Outcome(task_result, state)


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
        record[name] = bare_array(*kind, bytes(data))
    return record
