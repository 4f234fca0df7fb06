"""Clients' states on disk: SQLite files in a folder, which one run at a time uses."""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, RecordDict

from mest_fed.errors import InputError
from mest_fed.simulation.client_state.shard import Shard, connect, from_row, to_row
from mest_fed.simulation.engine.interfaces import States
from mest_fed.system.folder_lock import FolderLock


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


@dataclass(frozen=True)
class StatesDigest:
    """Tells whether states are those of a commit.

    Parameters
    ----------
    step : int
        Of the commit.
    shards : tuple of str
        A digest of each part of the store.
    """

    step: int
    shards: tuple[str, ...]


class VersionedStates(States, Protocol):
    """Clients' states that can be put back to any commit.

    A step is a whole number that increases from commit to commit, such as the number of the round
    that has ended. A state without records is none.
    """

    def commit(self, step: int) -> None:
        """Keep, as one, all that was put since the last commit; it belongs to this step.

        Raises
        ------
        ValueError
            If the step is negative or not above the last one.
        """

    def rewind(self, step: int) -> None:
        """Go back to how it was right after the commit of a step; forget all that came later.

        Raises
        ------
        InputError
            If there is no commit of that step.
        """

    def prune(self, keep_from: int) -> None:
        """Forget the commits of lower steps, and what only they need; the last commit stays."""

    def digest(self) -> StatesDigest:
        """Return the digest of the last commit. Nothing may be put since then."""

    def close(self) -> None:
        """Forget what was put since the last commit, and let go of files."""


def check_commit(step: int, last: int) -> None:
    """Refuse a step that does not follow the last one (-1: there is none yet)."""
    if step <= last:
        raise ValueError(f"commit of step {step} after step {last}; allowed: {last + 1} and more")


def check_rewind(step: int, steps: Sequence[int], where: str) -> None:
    """Refuse to go back to a step that was not committed, or is forgotten."""
    if step not in steps:
        found = f"{steps[0]} to {steps[-1]}" if steps else "none"
        raise InputError(f"{where}: clients' states of step {step} are not there; found: {found}")


#: Files that nodes are spread over. It belongs to the format: a folder keeps its number.
SHARDS = 8
#: Bytes of array records that are kept in memory.
CACHE_BYTES = 64 * 1024 * 1024
_FORMAT = 2
_TABLES = ("CREATE TABLE IF NOT EXISTS step (number INTEGER PRIMARY KEY)",)


class DiskStates:
    """Keeps states in a folder; memory holds only what was used last.

    See :class:`VersionedStates`. A commit is on the disk, whole or not
    at all, when :meth:`commit` returns: the files of all shards are written before the one that
    lists the steps, and what no listed step owns is dropped when the folder is opened.

    Parameters
    ----------
    folder : Path
        Made if it is missing. It is this process's own until :meth:`close`.
    expected : StatesDigest, optional
        What the folder must hold: states that are something else are refused, and nothing of them
        is changed.

    Raises
    ------
    InputError
        If another run uses the folder, or its files cannot be read or written; so do all methods.
    """

    def __init__(self, folder: Path, expected: StatesDigest | None = None) -> None:
        self._folder = folder
        self._threads = threading.RLock()  # Flower's older strategies call from a pool of threads
        self._cache = RecordCache(CACHE_BYTES)
        self._broken: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder)
        except OSError as error:
            raise InputError(f"clients' states in {folder}: {error}") from None
        self._open: list[Shard | sqlite3.Connection] = []
        try:
            with self._work():
                self._read_folder(expected)
        except InputError:
            self.close()
            raise

    def _read_folder(self, expected: StatesDigest | None) -> None:
        path = self._folder / "steps.db"
        if expected is not None and not path.exists():
            raise InputError(f"clients' states: {path} is missing")
        with _naming(path):
            self._steps_file = connect(path, _TABLES)
        self._open.append(self._steps_file)
        (found,) = self._steps_file.execute("PRAGMA user_version").fetchone()
        if found not in (0, _FORMAT):
            raise InputError(f"{self._folder} has format {found}; allowed: {_FORMAT}")
        self._steps_file.execute(f"PRAGMA user_version = {_FORMAT}")
        rows = self._steps_file.execute("SELECT number FROM step ORDER BY number")
        self._steps = [int(number) for (number,) in rows]
        if expected is not None:
            check_rewind(expected.step, self._steps, str(path))
        self._shards = []
        for number in range(SHARDS):
            path = self._folder / f"states-{number}.db"
            if self._steps and not path.exists():
                raise InputError(f"clients' states in {self._folder}: {path.name} is missing")
            with _naming(path):
                self._shards.append(Shard(path))
                self._open.append(self._shards[-1])
                if expected is not None:
                    self._shards[-1].check(expected.step, expected.shards[number])
        for shard in self._shards:  # after all were checked
            shard.rewind(self._last)

    @property
    def _last(self) -> int:
        return self._steps[-1] if self._steps else -1

    def get(self, node_id: int) -> RecordDict | None:
        """Return a client's state, as it was put last; None if it has none."""
        with self._work():
            shard = self._shard(node_id)
            row = shard.get(node_id)
            return None if row is None else from_row(row, lambda key: self._record(shard, key))

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """Set a client's state; None, or a state without records, forgets it."""
        with self._work():
            row, records = to_row(state) if state else (None, {})
            self._shard(node_id).put(node_id, self._last + 1, row, records)

    def commit(self, step: int) -> None:
        """See :meth:`VersionedStates.commit`."""
        with self._work():
            check_commit(step, self._last)
            for shard in self._shards:
                shard.commit()
            self._steps_file.execute("INSERT INTO step VALUES (?)", (step,))
            self._steps.append(step)

    def rewind(self, step: int) -> None:
        """See :meth:`VersionedStates.rewind`."""
        with self._work():
            check_rewind(step, self._steps, str(self._folder))
            self._steps_file.execute("DELETE FROM step WHERE number > ?", (step,))
            self._steps = [known for known in self._steps if known <= step]
            for shard in self._shards:
                shard.rewind(step)

    def digest(self) -> StatesDigest:
        """See :meth:`VersionedStates.digest`."""
        with self._work():
            return StatesDigest(self._last, tuple(shard.digest() for shard in self._shards))

    def prune(self, keep_from: int) -> None:
        """See :meth:`VersionedStates.prune`."""
        with self._work():
            keep_from = min(keep_from, self._last)
            self._steps_file.execute("DELETE FROM step WHERE number < ?", (keep_from,))
            self._steps = [known for known in self._steps if known >= keep_from]
            for shard in self._shards:
                shard.prune(keep_from)

    def close(self) -> None:
        """Forget what was put since the last commit, close the files and free the folder."""
        with self._threads:
            self._broken = "the store is closed"
            for file in self._open:
                file.close()
            self._open.clear()
            self._lock.release()

    def _shard(self, node_id: int) -> Shard:
        return self._shards[node_id % SHARDS]

    def _record(self, shard: Shard, key: str) -> ArrayRecord:
        record = self._cache.get(key)
        if record is None:
            record = shard.record(key)
            self._cache.remember(key, record)
        return record

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Say what is wrong with the files; after that the store is of no use."""
        with self._threads:
            if self._broken is not None:
                raise InputError(f"clients' states in {self._folder}: {self._broken}")
            try:
                yield
            except sqlite3.Error as error:
                self._broken = f"{error}; what was committed before is kept"
                raise InputError(f"clients' states in {self._folder}: {self._broken}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name a file that SQLite cannot read."""
    try:
        yield
    except sqlite3.Error as error:
        raise InputError(f"clients' states: {path} cannot be read: {error}") from error
