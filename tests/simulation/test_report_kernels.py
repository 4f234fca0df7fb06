"""The report's table of kernels."""

import json

import pytest
from example_run import example_files, write_files

from mest_fed.errors import InputError
from mest_fed.simulation.report import write_report
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.tables import kernel_table

PRODUCTS = ("forward", "backward_input", "backward_values")
HOSTILE = "<script>alert('&')</script>"


def row(layers=("stage1.conv1", "stage1.conv2"), times=None):
    case = {"cut": "strips:4", "shape": [8, 8, 3, 3], "size": [16, 8], "band": 0.1, "threads": 1}
    return {
        "layers": list(layers),
        "case": case,
        "choice": dict(zip(PRODUCTS, ("padded", "dense", "shifted"), strict=True)),
        "milliseconds": {} if times is None else dict.fromkeys(PRODUCTS, times),
    }


def folder_of(tmp_path, kernels):
    folder = write_files(tmp_path, example_files(rounds=1, tiers=1, clients_per_round=1))
    text = kernels if isinstance(kernels, str) else json.dumps(kernels)
    (folder / "kernels.json").write_text(text, encoding="utf-8")
    return folder


def kernels_of(*rows, mode="rule"):
    facts = {"format": 1, "mode": mode, "variant": "avx2", "threads": 1, "torch": "2.8"}
    return facts | {"rows": list(rows)}


def test_choices_by_rule(tmp_path):
    run = load_run(folder_of(tmp_path, kernels_of(row())))
    table = kernel_table(run)
    assert "nothing was timed" in table.caption
    assert "compiled for avx2" in table.caption
    (only,) = table.rows
    cells = (("16×8", ""), ("10%", ""), ("padded", ""), ("dense", ""), ("shifted", ""))  # noqa: RUF001
    assert only == ("stage1.conv1, stage1.conv2", cells)
    assert {basis for _, basis in table.columns} == {""}


def test_times_stand_beside_the_choice_and_are_called_measured(tmp_path):
    times = {"dense": 1.2345, "padded": 0.25, "shifted": 0.5}
    table = kernel_table(load_run(folder_of(tmp_path, kernels_of(row(times=times), mode="tuned"))))
    assert table.rows[0][1][2:] == (
        ("padded", "0.25 ms, dense 1.23, shifted 0.5"),
        ("dense", "1.23 ms, padded 0.25, shifted 0.5"),
        ("shifted", "0.5 ms, dense 1.23, padded 0.25"),
    )
    assert [basis for _, basis in table.columns] == ["", "", *["measured"] * 3]


def test_on_the_page_all_is_text(tmp_path):
    folder = folder_of(tmp_path, kernels_of(row([HOSTILE])))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "What computed them" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_runs_without_a_table(tmp_path):
    folder = folder_of(tmp_path, kernels_of())
    assert kernel_table(load_run(folder)) is None
    (folder / "kernels.json").unlink()
    assert load_run(folder).kernels is None
    assert "What computed them" not in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mode": 1, "variant": null, "rows": []}'])
def test_a_damaged_table_is_named(tmp_path, text):
    with pytest.raises(InputError, match=r"kernels\.json"):
        load_run(folder_of(tmp_path, text))
