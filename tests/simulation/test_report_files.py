"""Figures and tables of a run as files."""

import csv
import sys
from xml.etree import ElementTree

import pytest
from example_run import example_files, with_facts, write_files

from mest_fed import cli
from mest_fed.errors import InputError
from mest_fed.simulation.report import figures, run_tables, write_figures

FIGURES = {
    "metric-rounds", "loss", "metric-time", "metric-traffic", "client-metric", "labels", "memory",
    "layers", "staleness", "devices", "timeline", "energy", "failures",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files = with_facts(example_files(rounds=4, tiers=3, clients_per_round=8), "buffered")
    return write_files(tmp_path_factory.mktemp("run"), files)


def write(patch, folder, *options):
    patch.setattr(sys, "argv", ["mest-fed", "report", str(folder), *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("files") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        write(patch, folder, "--figures", place)
    return place


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.soak
def test_each_figure_is_a_drawing_and_a_document(place):
    assert {path.stem for path in place.glob("*.svg")} == FIGURES
    for name in FIGURES:
        root = ElementTree.parse(place / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert list(root.iter("{http://www.w3.org/2000/svg}path"))
        assert "var(--" not in (place / f"{name}.svg").read_text(encoding="utf-8")
        document = (place / f"{name}.pdf").read_bytes()
        assert document.startswith(b"%PDF-")
        assert document.rstrip().endswith(b"%%EOF")


@pytest.mark.soak
def test_the_list_of_figures_has_their_captions(place):
    rows = rows_of(place / "figures.csv")
    assert {row["name"] for row in rows} == FIGURES
    assert all(row["basis"].endswith(("measured", "modelled")) for row in rows)
    assert all(row["caption"] for row in rows)


def test_tables_read_back_are_what_was_written(folder, tmp_path, monkeypatch):
    few = {name: figures._FIGURES[name] for name in ("loss", "labels")}  # all of them take long
    monkeypatch.setattr(figures, "_FIGURES", few)
    place = tmp_path / "new" / "folder"
    write(monkeypatch, folder, "--figures", place, "--format", "csv", "--out", tmp_path / "tables")
    for form in ("svg", "pdf"):
        assert {path.stem for path in place.glob(f"*.{form}")} == set(few)
    assert {row["name"] for row in rows_of(place / "figures.csv")} == set(few)
    tables = run_tables(folder)
    assert set(tables) == {
        "rounds", "clients", "tiers", "layers", "evaluations", "labels", "changes",
    }  # fmt: skip
    for name, rows in tables.items():
        assert len(rows_of(place / f"{name}.csv")) == len(rows)
    assert rows_of(place / "labels.csv")[0] == {"partition": "0", "class": "cat", "examples": "10"}
    evaluation = rows_of(place / "evaluations.csv")[1]
    assert (evaluation["round"], evaluation["metric"]) == ("4", "accuracy")
    assert float(evaluation["value"]) == pytest.approx(0.6)
    for read, row in zip(rows_of(place / "rounds.csv"), tables["rounds"], strict=True):
        assert float(read["accuracy"]) == row["accuracy"]
        assert int(read["bytes_up"]) == row["bytes_up"]


@pytest.mark.soak
def test_the_same_run_gives_the_same_files(place, folder, tmp_path):
    write_figures(folder, tmp_path)
    for name in ("loss.svg", "loss.pdf", "labels.svg"):
        assert (tmp_path / name).read_bytes() == (place / name).read_bytes()


def test_tables_of_an_earlier_run_are_those_it_has(tmp_path):
    folder = write_files(tmp_path, example_files(rounds=1, tiers=1, clients_per_round=2))
    assert set(run_tables(folder)) == {"rounds", "clients", "tiers", "layers"}


@pytest.mark.soak
def test_a_place_that_is_a_file_is_named(folder, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(InputError, match=r"--figures .*taken cannot be used"):
        write_figures(folder, taken)
