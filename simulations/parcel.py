"""Jobs as they travel to a worker process: array records that many messages carry go once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Context, Metadata, MetricRecord, RecordDict

from simulations.flower_internals import rebuild_message
from simulations.worker import Job

#: Array records below this many bytes travel inside the parcel.
SHARE_FROM_BYTES = 16_384
#: Array records that are remembered, in case a next message carries them too.
REMEMBERED = 16


class Parcel(NamedTuple):
    """A job whose large array records are numbers: positions among those sent beside it."""

    metadata: Metadata
    records: list[tuple[str, ArrayRecord | MetricRecord | ConfigRecord | int]]
    context: Context


class RecordStore:
    """Puts array records into a shared store, each object once.

    Parameters
    ----------
    put : callable
        Stores a record and returns a reference to it.
    """

    def __init__(self, put: Callable[[ArrayRecord], Any]) -> None:
        self._put = put
        # The record is kept beside its reference, so that its id() stays its own.
        self._known: OrderedDict[int, tuple[ArrayRecord, Any]] = OrderedDict()

    def reference(self, record: ArrayRecord) -> Any:
        """Return the reference of a record, which is put if it is new."""
        key = id(record)
        if key not in self._known:
            self._known[key] = (record, self._put(record))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key][1]


def pack(jobs: Sequence[Job], store: RecordStore) -> tuple[list[Parcel], list[Any]]:
    """Return the parcels of a chunk and the references of the array records they share."""
    positions: dict[int, int] = {}
    references: list[Any] = []
    parcels = []
    for job in jobs:
        records: list[tuple[str, Any]] = []
        for name, record in job.message.content.items():
            if not isinstance(record, ArrayRecord) or record.count_bytes() < SHARE_FROM_BYTES:
                records.append((name, record))
                continue
            if id(record) not in positions:
                positions[id(record)] = len(references)
                references.append(store.reference(record))
            records.append((name, positions[id(record)]))
        parcels.append(Parcel(job.message.metadata, records, job.context))
    return parcels, references


def unpack(parcel: Parcel, shared: Sequence[ArrayRecord]) -> Job:
    """Return the job of a parcel."""
    content = RecordDict()
    for name, record in parcel.records:
        content[name] = shared[record] if isinstance(record, int) else record
    return Job(rebuild_message(parcel.metadata, content), parcel.context)
