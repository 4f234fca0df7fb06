"""What the server sends is decoded once by a process that plays several clients."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from mest_fed.client.isolation import alone
from mest_fed.client.local_round import ClientState
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.task import Task
from mest_fed.wire import decode, mask_hash
from mest_fed.wire.npy import HEADER
from mest_fed.wire.records import ARRAYS, CONFIG, from_record

#: Bytes of downloads that are kept, as they came; decoded they take as much again.
MOST_BYTES = 2**25

#: Name, type, shape, encoding and bytes of each array of a record.
_Arrays = tuple[tuple[str, str, tuple[int, ...], str, bytes], ...]
#: All that a decoded state depends on: the header, the arrays, the masks that the client holds.
_Key = tuple[bytes, _Arrays, _Arrays]


class _Decoded(NamedTuple):
    """A decoded download and the record of its masks, beside what they were made of."""

    key: _Key
    state: SparseState
    masks: ArrayRecord

    @property
    def size(self) -> int:
        """Bytes of the download as it came."""
        return sum(len(data) for arrays in self.key[1:] for *_, data in arrays)


class Downloads:
    """Decodes downloads; clients that get the same bytes and hold the same masks share the work.

    A message is compared to the last byte with one that was decoded, so that nothing is believed
    that was not checked. Each client gets arrays of its own.

    Parameters
    ----------
    spec : ModelSpec
        Of the model.
    most_bytes : int
        Bytes of downloads to keep; 0 to keep none.
    """

    def __init__(self, spec: ModelSpec, most_bytes: int = MOST_BYTES) -> None:
        self._spec = spec
        self._most_bytes = most_bytes
        self._kept: list[_Decoded] = []

    @property
    def bytes(self) -> int:
        """Bytes of the downloads that are kept, as they came."""
        return sum(it.size for it in self._kept)

    def receive(self, content: RecordDict, client: ClientState) -> SparseState:
        """Return the state that a message holds; the client keeps its masks.

        Parameters
        ----------
        content : RecordDict
            Of the server's message.
        client : ClientState
            Of the client that it was sent to.

        Raises
        ------
        WireError
            As :func:`~mest_fed.wire.decode`.
        """
        key = _key_of(content, client.masks_record)
        for place, found in enumerate(self._kept):
            if key == found.key:
                self._kept.insert(0, self._kept.pop(place))
                client.masks_record = _own(found.masks)
                return _copy(found.state)
        state = self._decode(content, client)
        client.masks = state.masks
        masks = client.masks_record
        if key is None or masks is None or not self._keep(_Decoded(key, state, _own(masks))):
            return state
        return _copy(state)

    def _decode(self, content: RecordDict, client: ClientState) -> SparseState:
        masks = client.masks
        known = {mask_hash(masks): masks} if masks else {}
        return decode(from_record(content), self._spec, known=known)

    def _keep(self, decoded: _Decoded) -> bool:
        """Keep a download, where the oldest can make room for it; say so."""
        if decoded.size > self._most_bytes:
            return False
        self._kept.insert(0, decoded)
        while self.bytes > self._most_bytes:
            self._kept.pop()
        return True


@lru_cache(maxsize=2)
def downloads_of(task: Task) -> Downloads:
    """Return the downloads of a task in this process; one that plays one device keeps none."""
    return Downloads(task.spec, 0 if alone() else MOST_BYTES)


def _key_of(content: RecordDict, held: ArrayRecord | None) -> _Key | None:
    """Return what a decoded state depends on; None where the message is none."""
    arrays, config = content.get(ARRAYS), content.get(CONFIG)
    header = config.get(HEADER) if isinstance(config, ConfigRecord) else None
    if not isinstance(arrays, ArrayRecord) or not isinstance(header, bytes):
        return None
    return header, _arrays(arrays), () if held is None else _arrays(held)


def _arrays(record: ArrayRecord) -> _Arrays:
    return tuple(
        (name, it.dtype, tuple(it.shape), it.stype, bytes(it.data)) for name, it in record.items()
    )


def _own(record: ArrayRecord) -> ArrayRecord:
    """Return a record of new arrays over the same bytes, which nobody can edit."""
    return ArrayRecord(
        {
            name: Array(it.dtype, tuple(it.shape), it.stype, bytes(it.data))
            for name, it in record.items()
        }
    )


def _copy(state: SparseState) -> SparseState:
    return SparseState(_copies(state.masks), _copies(state.values), _copies(state.dense))


def _copies(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name: array.copy() for name, array in arrays.items()}
