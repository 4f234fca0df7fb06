"""States of clients by hand, and comparisons of them."""

import json
import sqlite3
from collections import Counter
from contextlib import closing

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

#: Values of a mask that is large enough to be shared between clients.
MASK = 3000


def mask(number):
    """Return the mask set of a tier, as a client's context holds it."""
    return ArrayRecord({"conv": Array(np.arange(number, number + MASK, dtype=np.int32))})


def state(number, tier=None):
    """Return a client's state; with a tier it holds that tier's mask, too."""
    records = {"codes": ArrayRecord({"codes": Array(np.full(5, number % 256, np.uint8))})}
    if tier is not None:
        records["masks"] = mask(tier)
    records["plan"] = ConfigRecord({"of": f"plan {number}", "sizes": [1, number]})
    records["seen"] = MetricRecord({"rounds": number, "loss": 0.5 * number})
    return RecordDict(records)


def content(records):
    """Return a state as plain values, in its order, or None."""
    if records is None:
        return None
    return [(name, {key: plain(v) for key, v in r.items()}) for name, r in records.items()]


def plain(value):
    if isinstance(value, Array):
        return value.dtype, value.shape, value.stype, value.data
    return value


def records_in(folder):
    """Yield, for each shard of a closed store, the uses of each record, and the records it has."""
    for path in sorted(folder.glob("states-*.db")):
        with closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT shared FROM state").fetchall()
            uses = Counter(key for (text,) in rows for key in json.loads(text).values())
            assert uses == dict(database.execute("SELECT hash, count FROM uses"))
            yield uses, {key for (key,) in database.execute("SELECT hash FROM record")}
