"""Tables as CSV and Parquet: columns by hand, and what commands write."""

import csv
import io
import sys

import pyarrow.parquet
import pytest

from mest_fed import cli
from mest_fed.cli.tables import check_format, suffix_of, write_table
from mest_fed.devices import profile_names
from mest_fed.errors import InputError

ROWS = [
    {"name": "a, b", "count": 1, "share": 1, "spread": {"min": 0.5, "deep": {"x": 2}}, "list": [1]},
    {"name": 'c"d', "count": None, "share": 0.25, "spread": None, "late": True},
]
EXPECTED = [
    {"name": "a, b", "count": "1", "share": "1", "spread.min": "0.5", "spread.deep.x": "2"},
    {"name": 'c"d', "count": "", "share": "0.25", "spread.min": "", "spread.deep.x": ""},
]


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_nested_values_become_dotted_columns(tmp_path):
    write_table(ROWS, "csv", tmp_path / "t.csv")
    found = read((tmp_path / "t.csv").read_text(encoding="utf-8"))
    assert [{key: row[key] for key in EXPECTED[0]} for row in found] == EXPECTED
    assert [row["late"] for row in found] == ["", "true"]
    assert "list" not in found[0]


def test_parquet_holds_what_csv_does(tmp_path):
    write_table(ROWS, "parquet", tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table["share"].to_pylist() == [1.0, 0.25]
    assert table["spread.deep.x"].to_pylist() == [2, None]
    assert table["count"].to_pylist() == [1, None]


def test_a_table_without_rows_is_an_empty_file(tmp_path):
    write_table([], "csv", tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").strip() == ""


def test_parquet_needs_a_file():
    with pytest.raises(InputError, match="--out = '' is not allowed; allowed: a file"):
        write_table(ROWS, "parquet", None)


def test_devices_as_csv(says):
    rows = read(says("devices", "--format", "csv"))
    assert [row["name"] for row in rows] == list(profile_names())
    assert float(rows[0]["flops.dense"]) > 1e8


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("devices", "--format", "xls"), "--format = 'xls' is not allowed; allowed: csv, parquet"),
        (("devices", "--format", "parquet"), "--out = '' is not allowed"),
        (("devices", "--format", "csv", "--out", "no/x.csv"), "cannot write no/x.csv"),
        (("report", ".", "--format", "json"), "allowed: html, csv, parquet"),
        (("report", ".", "--out", "x"), "allowed: only beside --format csv, parquet"),
        (("report", ".", "--format", "csv"), "config.toml does not exist"),
        (("export", "."), "is not a run folder"),
    ],
)
def test_wrong_input_is_one_line(fails, arguments, message):
    assert message in fails(*arguments)


OWN = """
def tsv(table, file):
    rows = [table.column_names, *zip(*(column.to_pylist() for column in table.columns))]
    for row in rows:
        file.write("\\t".join(map(str, row)).encode() + b"\\n")

def raises(table, file):
    raise KeyError("column")
"""


@pytest.mark.soak
def test_a_format_of_ones_own(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert check_format("own.py:tsv", "html") == "own.py:tsv"
    assert suffix_of("own.py:tsv") == ".tsv"
    assert suffix_of("parquet") == ".parquet"
    write_table(ROWS, "own.py:tsv", tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text().splitlines()[1].startswith("a, b\t1\t1.0")
    monkeypatch.setattr(sys, "argv", ["mest-fed", "devices", "--format", "own.py:tsv"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(profile_names())
    for name in ("own.py:none", "own.py:raises"):
        with pytest.raises(InputError, match=f"^--format = '.*{name}'"):
            write_table(ROWS, check_format(name), None)
