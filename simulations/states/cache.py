"""The array records that were used last, up to a number of bytes."""

from collections import OrderedDict

from flwr.app import ArrayRecord


class RecordCache:
    """Array records by hash; the one that was used longest ago goes first.

    Parameters
    ----------
    max_bytes : int
        How many bytes of arrays it holds at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, tuple[ArrayRecord, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> ArrayRecord | None:
        """Return a record, or None if it is not remembered."""
        if key not in self._records:
            return None
        self._records.move_to_end(key)
        return self._records[key][0]

    def remember(self, key: str, record: ArrayRecord) -> None:
        """Remember a record that is not in the cache."""
        size = record.count_bytes()
        if size > self._max_bytes:
            return
        self._records[key] = (record, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._records.popitem(last=False)
            self._bytes -= freed
