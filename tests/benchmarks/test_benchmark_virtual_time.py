"""Modelled steps against measured ones, on a profile of this very machine."""

import json

import pytest
import virtual_time

from mest_fed.runtime import native_table


@pytest.mark.soak
@pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
def test_small_networks_take_what_is_modelled(tmp_path):
    """Nearly all are within a factor of 1.5; other work on the machine may disturb a few."""
    file = tmp_path / "rows.json"
    virtual_time.main(["--engines", "compiled", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    near = [row for row in rows if 2 / 3 <= row["ratio"] <= 3 / 2]
    assert len(rows) == 30
    assert len(near) >= 27
    assert all(1 / 2 <= row["ratio"] <= 2 for row in rows)


def test_the_cases_are_several_models_and_micro_batches():
    cases = list(virtual_time.cases(["compiled"]))
    assert len({case.model for case in cases}) == 5
    assert len({case.micro_batch for case in cases}) == 4
    assert len({case.name for case in cases}) == len(cases)
