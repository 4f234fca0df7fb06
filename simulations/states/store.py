"""Clients' states on disk: SQLite files in a folder, which one run at a time uses."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict

from mest_fed.errors import InputError
from simulations.states.cache import RecordCache
from simulations.states.codec import from_row, to_row
from simulations.states.lock import FolderLock
from simulations.states.protocol import StatesDigest, check_commit, check_rewind
from simulations.states.shard import Shard, connect

#: Files that nodes are spread over. It belongs to the format: a folder keeps its number.
SHARDS = 8
#: Bytes of array records that are kept in memory.
CACHE_BYTES = 64 * 1024 * 1024
_FORMAT = 2
_TABLES = ("CREATE TABLE IF NOT EXISTS step (number INTEGER PRIMARY KEY)",)


class DiskStates:
    """Keeps states in a folder; memory holds only what was used last.

    See :class:`simulations.states.protocol.VersionedStates`. A commit is on the disk, whole or not
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
