"""From run folders to rows: results, rounds, the cost to a target; studies on disk."""

import copy

import pytest
from example_run import example_files, write_files
from study_cases import SMALL, study_of

from mest_fed.config import to_toml
from mest_fed.errors import InputError
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.study.grid import expand
from mest_fed.simulation.study.protocols import Cost, Quality
from mest_fed.simulation.study.rows import COLUMNS, Result, result_rows, round_rows
from mest_fed.simulation.study.study_folder import RunState, StudyFolder, distinct_runs

AXES = '[axes]\nmethod = ["static", "set"]\nseed = [1, 2]\n'
ACCURACIES = [0.1, 0.6, 0.9, 0.8]


def contents(accuracies=ACCURACIES):
    """Return the files of a run whose rounds have these accuracies; each sends 100 and 50 bytes."""
    files = copy.deepcopy(example_files(rounds=len(accuracies) - 1, tiers=2, losses=False))
    for number, (row, accuracy) in enumerate(zip(files["rounds"], accuracies, strict=True)):
        row |= {"accuracy": accuracy, "bytes_up": 100, "bytes_down": 50}
        row |= {"virtual_seconds": 10.0 * number, "energy_joules": 2.0}
    files["summary"] |= {"final_accuracy": accuracies[-1], "bytes_up": 400, "bytes_down": 200}
    return files


@pytest.fixture
def cells():
    return expand(study_of(SMALL + AXES))


@pytest.fixture
def run(tmp_path):
    return load_run(write_files(tmp_path / "run", contents()))


def test_a_row_of_a_run_by_hand(cells, run):
    done, missing = result_rows(
        [Result(cells[0], "done", run=run), Result(cells[1], "failed", "no room")], Quality()
    )
    assert list(done) == list(missing)
    assert set(done) == {*COLUMNS, "method", "seed"}
    assert (done["cell"], done["method"], done["seed"]) == ("method=static,seed=1", "static", 1)
    assert (done["metric"], done["higher_is_better"], done["share"]) == ("accuracy", True, True)
    assert (done["final"], done["best"]) == (0.8, 0.9)
    assert (done["bytes_up"], done["bytes_down"], done["traffic_bytes"]) == (400, 200, 600)
    tiers = run.summary.tiers
    assert done["predicted_peak_bytes"] == max(tier.predicted_peak_bytes for tier in tiers)
    assert done["measured_peak_bytes"] == max(tier.measured_peak_bytes for tier in tiers)
    assert done["peak_bytes"] == done["measured_peak_bytes"]
    assert done["model_sha256"] == run.summary.model_sha256
    assert done["digest"] == cells[0].digest
    assert (missing["status"], missing["reason"], missing["final"]) == ("failed", "no room", None)


def test_rows_of_rounds_are_sums_since_the_start(cells, run):
    rows = round_rows([Result(cells[0], "done", run=run), Result(cells[1])])
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert [row["value"] for row in rows] == ACCURACIES
    assert [row["bytes_up"] for row in rows] == [100, 200, 300, 400]
    assert [row["bytes_down"] for row in rows] == [50, 100, 150, 200]
    assert [row["energy_joules"] for row in rows] == [2.0, 4.0, 6.0, 8.0]
    assert {row["cell"] for row in rows} == {"method=static,seed=1"}


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (0.6, (1.0, 1, 300, 10.0, 4.0)),
        (0.85, (1.0, 2, 450, 20.0, 6.0)),
        (0.95, (0.0, None, None, None, None)),
    ],
)
def test_the_cost_to_a_target_by_hand(cells, run, target, found):
    (row,) = result_rows([Result(cells[0], "done", run=run)], Cost(target))
    keys = ("reached", "goal_round", "goal_traffic_bytes", "goal_virtual_seconds")
    assert tuple(row[key] for key in (*keys, "goal_energy_joules")) == found


def write_run(folder, cell, *, ended=True, config=None):
    place = folder.runs / cell.run
    write_files(place, contents() | {"config": to_toml(config or cell.config)})
    if not ended:
        (place / "summary.json").unlink()
    return place


def test_how_far_runs_have_come(cells, tmp_path):
    with StudyFolder(tmp_path / "s", study_of(SMALL + AXES), cells) as folder:
        write_run(folder, cells[0])
        begun = write_run(folder, cells[1], ended=False)
        resumable = write_run(folder, cells[2], ended=False)
        (resumable / "checkpoints").mkdir()
        (resumable / "checkpoints" / "1").touch()
        states = [folder.state(cell) for cell in cells]
        assert states == [RunState.ENDED, RunState.BEGUN, RunState.RESUMABLE, RunState.NEW]
        folder.failed(cells[2].run, "no room")
        assert [(each.status, each.reason) for each in folder.results()] == [
            ("done", ""),
            ("interrupted", ""),
            ("failed", "no room"),
            ("not run", ""),
        ]
        folder.clear(cells[1])
        assert not begun.exists()
        with pytest.raises(InputError, match="in use by another"):
            StudyFolder(tmp_path / "s", study_of(SMALL + AXES), cells).__enter__()
    again = StudyFolder(tmp_path / "s", study_of(SMALL + AXES), cells)
    again.check(resume=True)
    assert [each.reason for each in again.results()] == ["", "", "no room", ""]


def test_a_study_may_grow_and_may_not_change(cells, tmp_path):
    with StudyFolder(tmp_path / "s", study_of(SMALL + AXES), cells) as folder:
        write_run(folder, cells[0])
    more = study_of(SMALL + AXES.replace("[1, 2]", "[1, 2, 3]"))
    grown = StudyFolder(tmp_path / "s", more, expand(more))
    grown.check(resume=True)
    assert [grown.state(cell) for cell in expand(more)][:2] == [RunState.ENDED, RunState.NEW]
    other = study_of(SMALL.replace("rounds = 2", "rounds = 3") + AXES)
    changed = StudyFolder(tmp_path / "s", other, expand(other))
    with pytest.raises(InputError, match=r"has run.rounds = 2, and the study now 3; allowed"):
        changed.check(resume=True)


def test_cells_of_one_run_have_its_result(tmp_path):
    text = '[axes]\nmethod = ["x", "y"]\n[bundles.method]\nx = {}\ny = {run.seed = 1}\n'
    study = study_of(SMALL + text)
    cells = expand(study)
    assert [cell.id for cell in distinct_runs(cells)] == ["method=x"]
    with StudyFolder(tmp_path / "s", study, cells) as folder:
        write_run(folder, cells[0])
        one, two = folder.results()
        assert one.run is two.run
        rows = folder.rows_of("method=x")
        assert [row["cell"] for row in rows] == ["method=x", "method=y"]
        assert {row["run"] for row in rows} == {"method=x"}
