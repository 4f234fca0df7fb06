"""Runs compared: rows by hand, the page, and what cannot be compared."""

import copy
import re

import pytest
from example_run import example_files, write_files

from mest_fed.errors import InputError
from mest_fed.simulation.report import run_tables
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
    assert [family.goal for family in compared.primary] == [0.85]
    fast, slow = compared.rows()
    assert (fast["run"], slow["run"]) == ("fast", "slow")
    assert (fast["final"], fast["best"]) == (0.8, 0.9)
    assert (slow["final"], slow["best"]) == (0.85, 0.85)
    # 0.85 is reached in round 2 and in round 3; each round sends 100 bytes and takes 10 seconds.
    assert (fast["goal_round"], fast["goal_traffic_bytes"]) == (2, 200)
    assert (slow["goal_round"], slow["goal_virtual_seconds"]) == (3, 30.0)
    assert compared.differences() == [("x.y", ["1", "2"]), ("x.z", ["—", "<b>"])]


def test_runs_that_ended_with_the_same_bits_are_named(tmp_path):
    digests = {"a": "1f", "b": "2e", "c": "1f", "d": "3d", "e": "2e"}
    folders = [
        write_files(tmp_path / name, contents([0.1], model_sha256=digest))
        for name, digest in digests.items()
    ]
    assert Comparison.of(folders).with_the_same_weights() == [["a", "c"], ["b", "e"]]
    assert Comparison.of([folders[0], folders[1], folders[3]]).with_the_same_weights() == []


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
    assert [family.goal for family in compared.primary] == [None]
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


def test_runs_of_different_metrics_share_no_axis_and_no_goal(folders, tmp_path):
    metric = {"name": "mse", "higher_is_better": False, "share": False}
    files = contents([None, None], primary_metric=metric, final_metrics={"mse": 3.5})
    for row, mse in zip(files["rounds"], (9.0, 3.5), strict=True):
        row |= {"metrics": {"mse": mse}, "client_accuracy": None}
    compared = Comparison.of([*folders, write_files(tmp_path / "other", files)])
    fast, _, other = compared.rows()
    assert (other["metric"], other["final"], other["best"]) == ("mse", 3.5, 3.5)
    assert "goal_round" not in other
    assert (fast["metric"], fast["goal_round"]) == ("accuracy", 2)  # of the two judged by accuracy
    write_comparison(compared, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Accuracy, higher is better (fast, slow); Mse, lower is better (other)." in page
    assert page.count("<svg") == 8
    ids = re.findall(r'<figure id="(.*?)"', page)
    assert len(set(ids)) == len(ids) == 8
    final = re.search(r"final mse<small.*?</tr>", page, re.DOTALL).group()
    assert re.findall(r"<td.*?>(.*?)</td>", final) == ["—", "—", "3.5"]


def test_peaks_say_whether_they_were_measured(folders, tmp_path):
    files = contents([0.1, 0.2])
    for tier, size in zip(files["summary"]["tiers"], (5_000_000, 7_000_000), strict=True):
        tier |= {"predicted_peak_bytes": size, "measured_peak_bytes": None}
    rows = Comparison.of([folders[0], write_files(tmp_path / "bare", files)]).rows()
    assert rows[0]["measured_peak_bytes"] is not None
    assert (rows[1]["predicted_peak_bytes"], rows[1]["measured_peak_bytes"]) == (7_000_000, None)


def app_contents(accuracy):
    """Return the files of a Flower app's run of two rounds."""
    costs = {"bytes_up": 10, "bytes_down": 20, "trained": 2, "evaluated": 2, "failed": 1}
    rounds = [
        {"round": number, "virtual_seconds": 5.0 * number, "wall_seconds": 1.0, **costs}
        | {"energy_joules": 3.0, "train_metrics": {}, "evaluate_metrics": {"acc": value}}
        for number, value in enumerate((0.1, accuracy), start=1)
    ]
    summary = {key: 2 * value for key, value in costs.items()}
    summary |= {"kind": "flower-app", "app": "x", "serverapp": "s:a", "clientapp": "c:a"}
    summary |= {"seed": 1, "nodes": 2, "rounds": 2, "energy_joules": 6.0, "virtual_seconds": 10.0}
    summary |= {"wall_seconds": 1.0, "tiers": [], "results": [], "server_state": {}}
    summary |= {"server_arrays": {}, "versions": {}}
    return {"config": '[app]\nname = "x"\n', "summary": summary, "rounds": rounds, "clients": []}


def test_runs_of_flower_apps_are_compared_by_costs_and_their_own_metrics(folders, tmp_path):
    apps = [write_files(tmp_path / name, app_contents(v)) for name, v in (("a", 0.4), ("b", 0.6))]
    compared = Comparison.of([*apps, folders[0]])
    a, b, _ = compared.rows()
    last = "acc (clients, evaluation)"
    assert (a[last], b[last], a["traffic_bytes"], a["failed"]) == (0.4, 0.6, 60, 2)
    write_comparison(compared, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "direction of a Flower app" in page
    row = re.search(r"last acc \(clients, evaluation\)<small.*?</tr>", page, re.DOTALL).group()
    assert re.findall(r"<td(.*?)>(.*?)</td>", row) == [("", "0.4"), ("", "0.6"), ("", "—")]
    assert set(run_tables(apps[0])) == {"rounds", "clients", "tiers"}
    assert run_tables(apps[0])["rounds"][1]["evaluate_metrics"] == {"acc": 0.4}
