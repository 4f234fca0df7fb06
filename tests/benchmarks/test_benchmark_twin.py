"""A lean node on one core against its twin: the benchmark runs, and its rows are whole."""

import json
import os

import pytest
import twin

from mest_fed.runtime import native_table


@pytest.mark.soak
@pytest.mark.net
@pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
def test_a_case_has_its_rows(tmp_path):
    before = os.sched_getaffinity(0)
    file = tmp_path / "rows.json"
    twin.main(["--quick", "--json", str(file)])
    found = json.loads(file.read_text())
    whats = [row["name"].rpartition(": ")[2] for row in found["rows"]]
    assert whats[:3] == ["round", "the device's own part", "its processor time"]
    assert all(row["ours"] > 0 < row["peer"] for row in found["rows"])
    assert [row["runs"] for row in found["rows"]][:3] == [2, 2, 1]
    assert len(found["profiles"]) == 2
    assert os.sched_getaffinity(0) == before


def test_the_cases_have_names_of_their_own():
    assert len({case.name for case in twin.CASES}) == len(twin.CASES)
