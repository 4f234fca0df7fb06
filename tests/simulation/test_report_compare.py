"""Runs compared: rows by hand, the page, and what cannot be compared."""

import copy
import re

import pytest
from example_run import example_files, write_files

from mest_fed.errors import InputError
from mest_fed.simulation.report.compare import Comparison, write_comparison


def contents(accuracies, *, config="", bytes_up=100, **summary):
    """Return a run's files whose rounds have these accuracies."""
    files = copy.deepcopy(example_files(rounds=len(accuracies) - 1, tiers=2, losses=False))
    for number, (row, accuracy) in enumerate(zip(files["rounds"], accuracies, strict=True)):
        row |= {"accuracy": accuracy, "bytes_up": bytes_up if number else 0, "bytes_down": 0}
        row |= {"virtual_seconds": 10.0 * number}
    files["summary"] |= {"final_accuracy": accuracies[-1], **summary}
    files["config"] += config
    return files


@pytest.fixture
def folders(tmp_path):
    fast = contents([0.1, 0.6, 0.9, 0.8], energy_joules=3.0, config="[x]\ny = 1\n")
    slow = contents([0.1, 0.3, 0.5, 0.85], energy_joules=2.0, config='[x]\ny = 2\nz = "<b>"\n')
    return [write_files(tmp_path / "fast", fast), write_files(tmp_path / "slow", slow)]


def test_rows_by_hand(folders):
    compared = Comparison.of(folders)
    assert compared.goal == 0.85
    fast, slow = compared.rows()
    assert (fast["run"], slow["run"]) == ("fast", "slow")
    assert (fast["final"], fast["best"]) == (0.8, 0.9)
    assert (slow["final"], slow["best"]) == (0.85, 0.85)
    # 0.85 is reached in round 2 and in round 3; each round sends 100 bytes and takes 10 seconds.
    assert (fast["goal_round"], fast["goal_traffic_bytes"]) == (2, 200)
    assert (slow["goal_round"], slow["goal_virtual_seconds"]) == (3, 30.0)
    assert compared.differences() == [("x.y", ["1", "2"]), ("x.z", ["—", "<b>"])]


def test_the_page_is_escaped_and_marks_the_best(folders, tmp_path):
    write_comparison(Comparison.of(folders), tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<svg") == 4
    energy = re.search(r"energy<small.*?</tr>", page, re.DOTALL).group()
    assert re.findall(r'<td class="best">(.*?)</td>', energy) == ["2 J"]
    final = re.search(r"final accuracy<small.*?</tr>", page, re.DOTALL).group()
    assert re.findall(r'<td class="best">(.*?)</td>', final) == ["85%"]
    write_comparison(Comparison.of(folders), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_runs_without_evaluations_are_compared_by_their_costs(tmp_path):
    bare = contents([0.1, 0.2])
    for row in bare["rounds"]:
        row |= {"accuracy": None, "client_accuracy": None}
    bare["summary"] |= {"final_accuracy": None, "final_client_accuracy": None}
    folders = [write_files(tmp_path / name, bare) for name in ("a", "b")]
    compared = Comparison.of(folders)
    assert compared.goal is None
    assert [column.key for column in compared.columns()][-1] == "failed"
    write_comparison(compared, tmp_path / "c.html")
    assert "No run was evaluated" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    files = contents([0.1, 0.2])
    folders = [write_files(tmp_path / parent / "run", files) for parent in ("a", "b")]
    assert list(Comparison.of(folders).runs) == ["a/run", "b/run"]


def test_what_cannot_be_compared(folders, tmp_path):
    with pytest.raises(InputError, match="given 1 run; allowed: two or more"):
        Comparison.of(folders[:1])
    with pytest.raises(InputError, match="stands twice"):
        Comparison.of([folders[0], folders[1], folders[0]])
    with pytest.raises(InputError, match="does not exist"):
        Comparison.of([folders[0], tmp_path / "no"])
    metric = {"name": "mean-squared-error", "higher_is_better": False, "share": False}
    files = contents([0.1, 0.2], primary_metric=metric)
    other = write_files(tmp_path / "other", files)
    with pytest.raises(InputError, match="other is judged by mean-squared-error, fast by accuracy"):
        Comparison.of([folders[0], other])


def test_a_run_of_a_flower_app_is_refused_by_name(folders, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "config.toml").write_text('[app]\nname = "x"\n')
    with pytest.raises(InputError, match="holds the run of a Flower app"):
        Comparison.of([folders[0], app])
