"""``mest-fed study --reuse`` takes from a record what it has; ``--data`` is no part of a study."""

import json
from dataclasses import replace

import pyarrow.parquet
import pytest
from test_cli_study import SEEDS, rows_of, run, write_study

from mest_fed.errors import InputError
from mest_fed.simulation.study.grid import expand
from mest_fed.simulation.study.known import read_known
from mest_fed.simulation.study.study_file import read_study


@pytest.mark.slow
def test_what_a_record_has_is_not_computed_again(tmp_path):
    record = tmp_path / "record"
    first = write_study(tmp_path, SEEDS.replace("[1, 2]", "[1]"))
    status, _, err = run(first, "--out", tmp_path / "one", "--record", record)
    assert status == 0, err

    more, again = write_study(tmp_path, SEEDS), tmp_path / "again"
    status, shown, err = run(more, "--out", tmp_path / "two", "--reuse", record, "--record", again)
    assert status == 0, err
    assert [row["cell"] for row in shown] == ["seed=2"]
    assert f"1 of 2 runs are taken from {record}\n" in err
    assert [path.name for path in (tmp_path / "two/runs").iterdir()] == ["seed=2"]
    (before,), (same, new) = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert same == before
    assert new["status"] == "done"
    assert new["model_sha256"] != same["model_sha256"]
    earlier = json.loads((again / "environment.json").read_text())["earlier"]
    assert [each["written"] for each in earlier] == [
        json.loads((record / "environment.json").read_text())["written"]
    ]
    assert "Rows of before" in (again / "README.md").read_text()
    study = read_study(str(more))
    assert sorted(read_known(again, study).runs) == sorted(row["digest"] for row in (same, new))
    check_key_that_has_come_since(record, study, same["digest"])
    check_damage(record, study)


def check_key_that_has_come_since(record, study, digest):
    """A record of before a key was known has its default."""
    path = record / "configurations/seed=1.toml"
    text = path.read_text()
    line = next(each for each in text.splitlines() if each.startswith("growth"))
    path.write_text(text.replace(line + "\n", ""))
    assert list(read_known(record, study).runs) == [digest]


def check_damage(record, study):
    """What was measured otherwise, or is damaged, is refused in a line."""
    other = replace(study, about=study.about.model_copy(update={"target": 0.5}))
    with pytest.raises(InputError, match=r"its study.target is None; allowed: 0.5, as the study"):
        read_known(record, other)
    pyarrow.parquet.write_table(pyarrow.table({"cell": ["x"]}), record / "results.parquet")
    with pytest.raises(InputError, match=r"its rows have no column 'status'"):
        read_known(record, study)
    (record / "results.parquet").write_bytes(b"no rows")
    with pytest.raises(InputError, match=r"results.parquet cannot be read: "):
        read_known(record, study)


def test_where_the_data_is_does_not_tell_cells_apart(tmp_path):
    """And one without files stays where it is."""
    axes = '[axes]\n"data.name" = ["digits", "cifar10"]\n'
    study = read_study(str(write_study(tmp_path, axes)))
    plain, placed = expand(study), expand(study, "/somewhere")
    assert [cell.digest for cell in plain] == [cell.digest for cell in placed]
    assert {cell.config.data.name: cell.config.data.path for cell in placed} == {
        "digits": "",
        "cifar10": "/somewhere",
    }
    assert {cell.studied.data.path for cell in placed} == {""}
    assert placed[0].as_studied(placed[0].config) == plain[0].config
