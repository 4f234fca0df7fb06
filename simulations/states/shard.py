"""One file of the store of clients' states: the states of some nodes, in versions.

A version holds from the step ``since`` on, until another replaces it in the step ``until`` (none
yet: null). What is pending belongs to the step after the last commit. The file has its own copy of
each shared record that its states use, with the number of versions that use it.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import ArrayRecord

from simulations.states.codec import Row, record_to_bytes

_TABLES = (
    "CREATE TABLE IF NOT EXISTS state (node INTEGER, since INTEGER, until INTEGER, own BLOB, "
    "shared TEXT, PRIMARY KEY (node, since))",
    "CREATE INDEX IF NOT EXISTS by_since ON state (since)",
    "CREATE INDEX IF NOT EXISTS by_until ON state (until) WHERE until IS NOT NULL",
    # Counts stand apart, so that a new one does not write the data again.
    "CREATE TABLE IF NOT EXISTS record (hash TEXT PRIMARY KEY, data BLOB)",
    "CREATE TABLE IF NOT EXISTS uses (hash TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID",
)


def connect(path: Path, tables: Iterable[str]) -> sqlite3.Connection:
    """Open a database, or make it, so that a commit is on the disk when it returns."""
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


class Shard:
    """States of some nodes in one SQLite file.

    Parameters
    ----------
    path : Path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._database = connect(path, _TABLES)
        self._uses: Counter[str] = Counter()

    def get(self, node_id: int) -> Row | None:
        """Return a node's newest version."""
        found = self._newest(node_id)
        return None if found is None else found[1]

    def put(
        self, node_id: int, step: int, row: Row | None, records: Mapping[str, ArrayRecord]
    ) -> None:
        """Set a node's version of the pending step; None ends the one before."""
        found = self._newest(node_id)
        if (None if found is None else found[1]) == row:
            return
        self._begin()
        if found is not None and found[0] == step:
            self._delete("node = ? AND since = ?", node_id, step)
        elif found is not None:
            text = "UPDATE state SET until = ? WHERE node = ? AND since = ?"
            self._database.execute(text, (step, node_id, found[0]))
        if row is None:
            return
        for key in row.shared.values():
            self._uses[key] += 1
            if not self._has(key):
                data = record_to_bytes(records[key])
                self._database.execute("INSERT INTO record VALUES (?, ?)", (key, data))
        self._database.execute(
            "INSERT INTO state VALUES (?, ?, NULL, ?, ?)",
            (node_id, step, row.own, json.dumps(row.shared)),
        )

    def data(self, key: str) -> bytes | None:
        """Return a shared record's bytes."""
        found = self._database.execute("SELECT data FROM record WHERE hash = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

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

    def _newest(self, node_id: int) -> tuple[int, Row] | None:
        text = "SELECT since, own, shared FROM state WHERE node = ? AND until IS NULL"
        found = self._database.execute(text, (node_id,)).fetchone()
        return None if found is None else (found[0], Row(bytes(found[1]), json.loads(found[2])))

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
