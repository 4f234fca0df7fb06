"""Clients' work as it travels between processes.

Array records that many messages carry go once. The data of arrays goes beside the pickle, as
buffers, so that it is copied only into the shared memory and out of it.
"""

import mmap
import os
import pickle
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Metadata, MetricRecord, RecordDict

from mest_fed.simulation.engine.client_runner import Block, Job, Outcome
from mest_fed.simulation.engine.flower import bare_array, rebuild_message
from mest_fed.simulation.engine.interfaces import TaskConditions, TaskResult

_TOKEN_BYTES = 32
#: Lanes grow by whole steps, since growing maps the file anew.
_STEP = 1 << 20
_ALIGNMENT = 64


class Span(NamedTuple):
    """Where data stands in a memory file."""

    start: int
    size: int


class Address(NamedTuple):
    """How a worker on the same machine finds a memory file, and knows it by its first bytes."""

    path: str
    token: bytes


class SharedMemory:
    """One end of a memory file: the worker writes, the driver reads at the addresses it gets.

    The reader must be done before the writer writes again.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)

    @classmethod
    def create(cls) -> tuple["SharedMemory", Address] | None:
        """Make a memory file, and say how to find it; None where there cannot be one."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            descriptor = os.memfd_create("mest-fed memory_file")
        except OSError:
            return None
        token = secrets.token_bytes(_TOKEN_BYTES)
        os.write(descriptor, token)
        return cls(descriptor), Address(f"/proc/{os.getpid()}/fd/{descriptor}", token)

    @classmethod
    def find(cls, address: Address) -> "SharedMemory | None":
        """Open the memory file at an address; None if it is not there, as on another machine."""
        try:
            descriptor = os.open(address.path, os.O_RDWR)
        except OSError:
            return None
        with suppress(OSError, ValueError):  # another file than ours has this name
            if os.pread(descriptor, _TOKEN_BYTES, 0) == address.token:
                return cls(descriptor)
        os.close(descriptor)
        return None

    def write(self, buffers: Sequence[memoryview]) -> list[Span] | None:
        """Write buffers of bytes; None if the memory file cannot hold so much."""
        spans = list(_layout(len(buffer) for buffer in buffers))
        end = spans[-1].start + spans[-1].size if spans else 0
        if end > len(self._map) and not self._grow(end):
            return None
        for span, buffer in zip(spans, buffers, strict=True):
            self._map[span.start : span.start + span.size] = buffer
        return spans

    def view(self, span: Span) -> memoryview:
        """Return what was written, to be copied before the writer writes again."""
        end = span.start + span.size
        if end > len(self._map):
            self._remap(os.fstat(self._descriptor).st_size)
        return memoryview(self._map)[span.start : end]

    def close(self) -> None:
        """Close this mapping."""
        self._map.close()
        os.close(self._descriptor)

    def _grow(self, size: int) -> bool:
        size = -(-size // _STEP) * _STEP
        try:
            # Pages are set aside now: to find none later would end the process.
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            return False
        self._remap(size)
        return True

    def _remap(self, size: int) -> None:
        self._map.close()
        self._map = mmap.mmap(self._descriptor, size)


def _layout(sizes: Iterable[int]) -> Iterable[Span]:
    start = _TOKEN_BYTES
    for size in sizes:
        start = -(-start // _ALIGNMENT) * _ALIGNMENT
        yield Span(start, size)
        start += size


#: Data below this many bytes stays in the pickle.
BUFFER_FROM_BYTES = 4096
#: Array records below this many bytes travel in each encoded.
SHARE_FROM_BYTES = 16_384
#: Array records that are remembered, in case a next message carries them too.
REMEMBERED = 32


class PackedArrays(NamedTuple):
    """An array record with its data as buffers."""

    names: list[str]
    kinds: list[tuple[str, tuple[int, ...], str]]
    data: list[bytes | np.ndarray | pickle.PickleBuffer]


class EncodedJobs(NamedTuple):
    """A job; a number stands for an array record that many parcels share."""

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
        parcels.append(EncodedJobs(metadata, records, job.context, job.conditions, job.seed))
    return parcels, references


def unpack_jobs(parcels: Iterable[EncodedJobs], shared: Sequence[PackedArrays]) -> list[Job]:
    """Return the jobs of a chunk."""
    shared_records = [_unpack(packed) for packed in shared]
    jobs = []
    for metadata, records, context, conditions, seed in parcels:
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
    pickled = pickle.dumps(
        (returns, block.printed, block.tracebacks), 5, buffer_callback=buffers.append
    )
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
    returns, printed, tracebacks = pickle.loads(
        records.returns, buffers=[bytes(_view(item, memory_file)) for item in own]
    )
    # Sums are added to in place.
    mutable = [bytearray(_view(item, memory_file)) for item in summed]
    partial = pickle.loads(records.partial, buffers=mutable)
    pairs = zip(jobs, returns, strict=True)
    outcomes = [_unpack_outcome(job, encoded) for job, encoded in pairs]
    return Block(outcomes, partial, printed, tracebacks)


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
