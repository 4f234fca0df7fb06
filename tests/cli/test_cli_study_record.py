"""The record of a study, its page and rows; ``--reuse`` takes from a record what it has."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from study_commands import AXES, rows_of, run, run_here, table_of, write_study

from mest_fed.errors import InputError
from mest_fed.simulation.study.grid import expand
from mest_fed.simulation.study.known import read_known
from mest_fed.simulation.study.record import BEGIN, read_record, tables_of
from mest_fed.simulation.study.study_file import read_study

MORE = '[axes]\nmethod = ["static"]\nseed = [1, 2]\n'
IDS = ["method=static,seed=1", "method=mest-em,seed=1"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of two methods, done by a process of its own, its record and its figures."""
    place = tmp_path_factory.mktemp("studied")
    folder, record, figures = place / "a study", place / "records" / "small", place / "f"
    options = ("--out", folder, "--record", record, "--figures", figures)
    status, table, err = run(write_study(place, AXES), *options)
    assert status == 0, err
    return SimpleNamespace(folder=folder, record=record, figures=figures, table=table, err=err)


@pytest.mark.slow
def test_from_file_to_page_and_record(studied):
    folder, record = studied.folder, studied.record
    assert [row["cell"] for row in studied.table] == IDS
    assert {row["status"] for row in studied.table} == {"done"}
    rows = rows_of(folder)
    assert [row["cell"] for row in rows] == IDS
    assert [(row["method"], row["seed"]) for row in rows] == [("static", 1), ("mest-em", 1)]
    for row in rows:
        run_folder = folder / "runs" / row["run"]
        summary = json.loads((run_folder / "summary.json").read_text())
        assert row["model_sha256"] == summary["model_sha256"]
        assert row["final"] == summary["final_accuracy"]
        assert row["traffic_bytes"] == summary["bytes_up"] + summary["bytes_down"]
        assert (run_folder / "report.html").exists()
    by_round = pyarrow.parquet.read_table(folder / "rounds.parquet").to_pylist()
    assert [row["round"] for row in by_round] == 2 * [0, 1, 2]
    assert by_round[2]["bytes_up"] == rows[0]["bytes_up"]
    assert "study.html" in studied.err
    check_record(record, rows)
    assert {path.suffix for path in studied.figures.iterdir()} == {".svg", ".pdf"}


def check_record(record, rows):
    """The tables of a record are those of its rows, and what a person wrote stays."""
    page = (record / "README.md").read_text()
    assert tables_of(read_record(record)) in page
    assert rows_of(record) == rows
    assert len(list((record / "configurations").iterdir())) == 2
    assert json.loads((record / "environment.json").read_text())["versions"]["mest-fed"]
    assert page.index(BEGIN) < page.index("## Reading")


@pytest.mark.slow
def test_what_a_record_has_is_not_computed_again(studied, tmp_path, monkeypatch, capsys):
    record, again = tmp_path / "record", tmp_path / "again"
    for copy in (record, again):
        shutil.copytree(studied.record, copy)
    more, fresh = write_study(tmp_path, MORE), "method=static,seed=2"
    options = ("--out", tmp_path / "two", "--reuse", record, "--record", again)
    status, out, err = run_here(monkeypatch, capsys, more, *options)
    assert status == 0, err
    assert [row["cell"] for row in table_of(out)] == [fresh]
    assert f"1 of 2 runs are taken from {record}\n" in err
    assert [path.name for path in (tmp_path / "two/runs").iterdir()] == [fresh]
    (before, _), (same, new) = rows_of(studied.folder), rows_of(tmp_path / "two")
    assert same == before
    assert new["status"] == "done"
    assert new["model_sha256"] != same["model_sha256"]
    recorded = {path.stem for path in (again / "configurations").iterdir()}
    assert recorded == {same["run"], new["run"]}  # and no longer those of `mest-em`
    earlier = json.loads((again / "environment.json").read_text())["earlier"]
    assert [each["written"] for each in earlier] == [
        json.loads((record / "environment.json").read_text())["written"]
    ]
    assert "Rows of before" in (again / "README.md").read_text()
    study = read_study(str(more))
    assert sorted(read_known(again, study).runs) == sorted(row["digest"] for row in (same, new))
    known = [row["digest"] for row in rows_of(studied.folder)]
    assert same["digest"] == known[0]
    check_key_that_has_come_since(record, study, known)
    check_damage(record, study)


def check_key_that_has_come_since(record, study, digests):
    """A record of before a key was known has its default."""
    path = record / f"configurations/{IDS[0]}.toml"
    text = path.read_text()
    line = next(each for each in text.splitlines() if each.startswith("growth"))
    path.write_text(text.replace(line + "\n", ""))
    assert list(read_known(record, study).runs) == digests


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
