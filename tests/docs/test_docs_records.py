"""The tables of each record are those of its raw rows, and its study is a study."""

import hashlib
import json
import tomllib
from pathlib import Path

import pytest

from mest_fed.config import from_table, to_flat
from mest_fed.simulation.study.grid import digest_of
from mest_fed.simulation.study.record import CONFIGS, README, read_record, tables_of

_FOLDER = Path(__file__).parents[2] / "docs" / "records"
#: Python keeps what it compiles beside a script.
RECORDS = sorted(each for each in _FOLDER.glob("*/") if each.name != "__pycache__")


@pytest.mark.parametrize("record", RECORDS, ids=lambda place: place.name)
def test_the_tables_are_those_of_the_rows(record):
    found = read_record(record)
    assert tables_of(found) in (record / README).read_text(encoding="utf-8")


@pytest.mark.parametrize("record", RECORDS, ids=lambda place: place.name)
def test_each_row_has_its_configuration(record):
    """As it was written: keys that came since are no part of it."""
    for row in read_record(record).rows:
        table = tomllib.loads((record / CONFIGS / f"{row['run']}.toml").read_text("utf-8"))
        flat = {
            f"{section}.{key}": it for section, keys in table.items() for key, it in keys.items()
        }
        text = json.dumps(flat, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == row["digest"]


def test_it_is_the_digest_of_a_configuration():
    config = from_table({"run": {"seed": 3}}, "test")
    text = json.dumps(to_flat(config), sort_keys=True)
    assert digest_of(config) == hashlib.sha256(text.encode()).hexdigest()


def test_the_page_of_results_is_that_of_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(RECORDS[0].parent))
    import make_results

    assert make_results.RESULTS.read_text(encoding="utf-8") == make_results.results()
