"""The benchmark of asynchrony: rows from curves, the picture, one tiny run."""

import json

import asynchrony
import pytest


def test_rows_by_hand():
    curves = {
        asynchrony.SYNC: [
            [(0, 0.1, 0), (2.0, 0.75, 9), (4.0, 0.85, 10)],
            [(0, 0.1, 0), (4.0, 0.75, 7)],
        ],
        "FedBuff, buffer 5": [[(0, 0.1, 0), (1.0, 0.7, 5)], [(0, 0.1, 0), (2.0, 0.9, 6)]],
    }
    rows = {row["name"]: row for row in asynchrony.rows_of(curves)}
    row = rows["FedBuff, buffer 5, accuracy 0.7"]
    assert (row["ours"], row["peer"], row["ratio"], row["reached"]) == (1.5, 3.0, 2.0, "2 of 2")
    row = rows["FedBuff, buffer 5, accuracy 0.8"]
    assert (row["ours"], row["peer"], row["reached"]) == (2.0, 4.0, "1 of 2")
    assert row["ours_runs"] == [None, 2.0]
    assert row["updates_runs"] == [5, 6]


def test_the_picture(tmp_path):
    curves = {mode: [[(0.0, 0.1, 0), (1.0, 0.8, 5)]] for mode in asynchrony.MODES}
    asynchrony.draw(curves, tmp_path / "picture.svg")
    assert "semi-synchronous" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


@pytest.mark.soak
@pytest.mark.slow
def test_a_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asynchrony, "MODES", dict(list(asynchrony.MODES.items())[::2]))
    monkeypatch.setattr(asynchrony, "MIX", {"rpi-4": 1})
    monkeypatch.setattr(asynchrony, "TARGETS", (0.01,))
    asynchrony.main(["--quick", "--updates", "10", "--json", str(tmp_path / "rows.json")])
    found = json.loads((tmp_path / "rows.json").read_text())
    synchronous, *others = found["rows"]
    assert synchronous["ratio"] == 1.0
    assert others
    for row in others:
        assert row["peer"] == synchronous["ours"]
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.05)
    assert "synchronous" in capsys.readouterr().out
