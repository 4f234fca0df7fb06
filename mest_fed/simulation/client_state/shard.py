"""One file of the store of clients' states: the states of some nodes, in versions.

A version holds from the step ``since`` on, until another replaces it in the step ``until`` (none
yet: null). What is pending belongs to the step after the last commit. The file has its own copy of
each shared record that its states use, with the number of versions that use it.

Each row has a digest of its content, which is checked whenever the row is read. The sum of the
digests of the newest versions tells two contents of a file apart, and is kept up to date row by
row (Bellare and Micciancio 1997, incremental hashing by sums). It finds damage; it is no defence
against forgery.
"""

import hashlib
import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, RecordDict

from mest_fed.errors import InputError
from mest_fed.server.flower_internals import context_state_from_bytes, context_state_to_bytes

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


_MODULUS = 2**128

_TABLES = (
    "CREATE TABLE IF NOT EXISTS state (node INTEGER, since INTEGER, until INTEGER, own BLOB, "
    "shared TEXT, digest BLOB, PRIMARY KEY (node, since))",
    "CREATE INDEX IF NOT EXISTS by_since ON state (since)",
    "CREATE INDEX IF NOT EXISTS by_until ON state (until) WHERE until IS NOT NULL",
    # Counts stand apart, so that a new one does not write the data again.
    "CREATE TABLE IF NOT EXISTS record (hash TEXT PRIMARY KEY, data BLOB)",
    "CREATE TABLE IF NOT EXISTS uses (hash TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID",
)


def connect(path: Path, tables: Iterable[str]) -> sqlite3.Connection:
    """Open a database, or make it, so that a commit is on the disk when it returns."""
    path.touch()  # SQLite itself would make it writable for the user alone
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # Without others no shared memory is needed, so that network file systems will do.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute("BEGIN")
        for table in tables:
            database.execute(table)
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


class _Version(NamedTuple):
    since: int
    row: Row
    digest: bytes


def _digest(node_id: int, since: int, own: bytes, shared: str) -> bytes:
    """Return 128 bits of SHA-256 over what a row says."""
    text = shared.encode()
    digest = hashlib.sha256(struct.pack("<qqqq", node_id, since, len(own), len(text)))
    digest.update(own)
    digest.update(text)
    return digest.digest()[:16]


def _number(digest: bytes) -> int:
    return int.from_bytes(digest)


class Shard:
    """States of some nodes in one SQLite file.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = connect(path, _TABLES)
        self._uses: Counter[str] = Counter()
        self._sum = 0

    def get(self, node_id: int) -> Row | None:
        """Return a node's newest version."""
        found = self._newest(node_id)
        return None if found is None else found.row

    def put(
        self, node_id: int, step: int, row: Row | None, records: Mapping[str, ArrayRecord]
    ) -> None:
        """Set a node's version of the pending step; None ends the one before."""
        found = self._newest(node_id)
        if (None if found is None else found.row) == row:
            return
        self._begin()
        if found is not None:
            self._sum -= _number(found.digest)
            if found.since == step:
                self._delete("node = ? AND since = ?", node_id, step)
            else:
                text = "UPDATE state SET until = ? WHERE node = ? AND since = ?"
                self._database.execute(text, (step, node_id, found.since))
        if row is None:
            return
        for key in row.shared.values():
            self._uses[key] += 1
            if not self._has(key):
                data = record_to_bytes(records[key])
                self._database.execute("INSERT INTO record VALUES (?, ?)", (key, data))
        shared = json.dumps(row.shared)
        digest = _digest(node_id, step, row.own, shared)
        self._sum += _number(digest)
        self._database.execute(
            "INSERT INTO state VALUES (?, ?, NULL, ?, ?, ?)",
            (node_id, step, row.own, shared, digest),
        )

    def record(self, key: str) -> ArrayRecord:
        """Return a shared record.

        Raises
        ------
        InputError
            If it is gone or damaged.
        """
        found = self._database.execute("SELECT data FROM record WHERE hash = ?", (key,)).fetchone()
        if found is None:
            raise InputError(f"{self._path} is damaged: array record {key} is gone")
        return self._checked_record(key, bytes(found[0]))

    def digest(self) -> str:
        """Return the digest of the newest versions, as hexadecimal digits."""
        return f"{self._sum % _MODULUS:032x}"

    def check(self, step: int, digest: str) -> None:
        """Check that the versions of a step are whole, and those of a digest; change nothing.

        All of the file is read: this is for a run that is resumed.

        Raises
        ------
        InputError
            If they are not: names the file.
        """
        (verdict,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise InputError(f"{self._path} is damaged: {' '.join(verdict.split())}")
        total, uses = 0, Counter[str]()
        text = "SELECT node, since, until, own, shared, digest FROM state"
        for node, since, until, *stored in self._database.execute(text):
            version = self._version(node, since, stored)
            uses.update(version.row.shared.values())
            if since <= step and (until is None or until > step):
                total += _number(version.digest)
        if f"{total % _MODULUS:032x}" != digest:
            raise InputError(
                f"{self._path} is damaged: the clients' states in it are not those of the "
                f"checkpoint of round {step}"
            )
        records = set()
        for key, data in self._database.execute("SELECT hash, data FROM record"):
            self._checked_record(key, data)
            records.add(key)
        counted = dict(self._database.execute("SELECT hash, count FROM uses"))
        if counted != uses or records != counted.keys():
            raise InputError(f"{self._path} is damaged: array records are missing")

    def commit(self) -> None:
        """Write what is pending."""
        if self._database.in_transaction:
            self._count_uses()
            self._database.execute("COMMIT")

    def rewind(self, step: int) -> None:
        """Drop what is pending, and all versions that began after a step."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
            self._uses.clear()
        self._begin()
        self._delete("since > ?", step)
        self._database.execute("UPDATE state SET until = NULL WHERE until > ?", (step,))
        digests = self._database.execute("SELECT digest FROM state WHERE until IS NULL")
        self._sum = sum(_number(digest) for (digest,) in digests)
        self.commit()

    def prune(self, keep_from: int) -> None:
        """Drop versions that were replaced by then; the next commit makes it last."""
        self._begin()
        self._delete("until <= ?", keep_from)

    def close(self) -> None:
        """Drop what is pending and close the file."""
        self._database.close()

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN")

    def _has(self, key: str) -> bool:
        text = "SELECT 1 FROM record WHERE hash = ?"
        return self._database.execute(text, (key,)).fetchone() is not None

    def _newest(self, node_id: int) -> "_Version | None":
        text = "SELECT since, own, shared, digest FROM state WHERE node = ? AND until IS NULL"
        found = self._database.execute(text, (node_id,)).fetchone()
        return None if found is None else self._version(node_id, found[0], found[1:])

    def _version(self, node_id: int, since: int, stored: Sequence[Any]) -> "_Version":
        own, shared, digest = stored
        try:
            whole = _digest(node_id, since, own, shared) == digest
        except (AttributeError, TypeError, UnicodeError, struct.error):  # of another type than ours
            whole = False
        if not whole:
            raise InputError(f"{self._path} is damaged: the state of client {node_id} has changed")
        return _Version(since, Row(bytes(own), json.loads(shared)), digest)

    def _checked_record(self, key: str, data: bytes) -> ArrayRecord:
        try:
            record = record_from_bytes(data)
        except Exception:  # what protobuf and Flower raise has no common base
            record = None
        if record is None or content_hash(record) != key:
            raise InputError(f"{self._path} is damaged: array record {key} has changed")
        return record

    def _delete(self, where: str, *values: int) -> None:
        """Delete versions; ``where`` is text of this file."""
        select = f"SELECT shared FROM state WHERE {where} AND shared <> '{{}}'"
        for (shared,) in self._database.execute(select, values):
            self._uses.subtract(json.loads(shared).values())
        self._database.execute(f"DELETE FROM state WHERE {where}", values)

    def _count_uses(self) -> None:
        """Write how many versions use each record; delete those that none uses."""
        changes, self._uses = self._uses, Counter()
        self._database.executemany(
            "INSERT INTO uses VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET count = count + excluded.count",
            changes.items(),
        )
        fewer = [(key,) for key, change in changes.items() if change <= 0]
        unused = "hash = ? AND count = 0"
        self._database.executemany(
            f"DELETE FROM record WHERE hash IN (SELECT hash FROM uses WHERE {unused})", fewer
        )
        self._database.executemany(f"DELETE FROM uses WHERE {unused}", fewer)
