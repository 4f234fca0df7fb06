"""The benchmark of compact storage: a tiny run."""

import json

import compact
import pytest

from mest_fed.errors import InputError


def test_rows_are_beside_memcpy(tmp_path):
    path = tmp_path / "rows.json"
    compact.main(
        ["--shape", "2", "3", "17", "--repeats", "2", "--warm-up", "1", "--json", str(path)]
    )
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert [name for name, row in rows.items() if row["torch_gb_per_s"] is not None] == [
        f"{name}, threads 1" for name in ("quantise", "dequantise", "squeeze", "expand")
    ]
    assert rows["quantise, threads 1"]["stored_bytes"] == pytest.approx(1 + 8 / 17, abs=1e-3)
    assert rows["memcpy, threads 1"]["ratio"] == 1


def test_a_shape_without_planes_is_refused():
    with pytest.raises(InputError, match="--shape"):
        compact.parse(["--shape", "3"])
