"""The benchmark of a model by file against the same model by name."""

import json

import own_model
import pytest
from own_model import Side

from mest_fed.errors import InputError
from mest_fed.simulation.peak_measurement import PeakMeasurement


@pytest.mark.soak
@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))
    own_model.main(["--quick", "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["ours_sha256"] == row["peer_sha256"]
    assert row["same_bits"] == "True"
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.01)


def test_runs_that_differ_are_refused(tmp_path):
    side = Side("resnet8", 1, tmp_path)
    side.digests = ["a", "a"]
    assert side.digest == "a"
    side.digests.append("b")
    with pytest.raises(InputError, match="runs of one seed end in other weights"):
        _ = side.digest
