"""The tables of each record are those of its raw rows, and its study is a study."""

from pathlib import Path

import pytest

from mest_fed.config import from_table, read_toml
from mest_fed.simulation.study.grid import digest_of
from mest_fed.simulation.study.record import CONFIGS, README, read_record, tables_of

RECORDS = sorted((Path(__file__).parents[2] / "docs" / "records").glob("*/"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda place: place.name)
def test_the_tables_are_those_of_the_rows(record):
    found = read_record(record)
    assert tables_of(found) in (record / README).read_text(encoding="utf-8")


@pytest.mark.parametrize("record", RECORDS, ids=lambda place: place.name)
def test_each_row_has_its_configuration(record):
    for row in read_record(record).rows:
        path = record / CONFIGS / f"{row['run']}.toml"
        assert digest_of(from_table(read_toml(path), str(path))) == row["digest"]
