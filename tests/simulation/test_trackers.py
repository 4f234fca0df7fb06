"""Every tracker holds each round once, with the values of rounds.jsonl, however it was stopped."""

import logging
import sys

import pytest
from tiny_run import StopAfter, read_rows, start, tiny_config
from tracker_readers import READERS, mlflow_run

from mest_fed.catalogue import TRACKERS
from mest_fed.config import to_flat
from mest_fed.errors import InputError
from mest_fed.server.run_log import RUN_LOG
from mest_fed.simulation.rounds import Interrupted
from mest_fed.simulation.trackers.progress import Observers
from mest_fed.simulation.trackers.trackers import metrics, open_trackers

# What other people's libraries warn of.
pytestmark = pytest.mark.filterwarnings("ignore")

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
CONFIG = tiny_config(run={"rounds": 4})
ROWS = [
    {
        "round": number,
        "accuracy": number / 8,
        "train_loss": None if number == 0 else 2.0 - number,
        "client_accuracy": {"median": 0.5, "p10": number / 16} if number % 2 else None,
        "density": 0.25,
        "bytes_up": 10**9 * number,
        "wall_seconds": 1.5 * number,
    }
    for number in range(5)
]


@pytest.fixture(params=TRACKERS)
def kind(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a folder [1]"
    path.mkdir()
    return path


def log(kind, folder, rows, done=()):
    """Log rows in one go, as a run that begins after ``done`` and ends, or is stopped."""
    (tracker,) = open_trackers([kind], folder)
    tracker.begin(CONFIG, "tiny", done)
    for row in rows:
        tracker.round_done(row)
    tracker.end()
    tracker.end()  # after an interruption it may come twice


def assert_holds(kind, folder, rows):
    """Each number of each row is there, once, and nothing else is."""
    wanted = {}
    for row in rows:
        for key, value in metrics(row).items():
            wanted.setdefault(key, []).append((row["round"], value))
    found = READERS[kind](folder)
    assert {key: sorted(points) for key, points in found.items()} == wanted


def test_each_round_is_there_once(kind, folder):
    log(kind, folder, ROWS)
    assert_holds(kind, folder, ROWS)


@pytest.mark.parametrize("checkpoint", [1, 3])
def test_rounds_that_a_resumed_run_does_again_are_there_once(kind, folder, checkpoint):
    log(kind, folder, ROWS[:4])
    log(kind, folder, ROWS[checkpoint:4], done=ROWS[:checkpoint])
    log(kind, folder, ROWS[checkpoint:], done=ROWS[:checkpoint])
    assert_holds(kind, folder, ROWS)


def test_a_resumed_run_fills_in_what_was_never_logged(kind, folder):
    log(kind, folder, ROWS[:2])
    log(kind, folder, ROWS[3:], done=ROWS[:3])
    assert_holds(kind, folder, ROWS)


def test_nothing_is_written_before_a_run_begins(kind, folder):
    (tracker,) = open_trackers([kind], folder)
    tracker.end()
    assert list(folder.iterdir()) == []


def test_a_sink_that_fails_is_one_warning_and_not_the_end(kind, folder, caplog):
    (tracker,) = open_trackers([kind, kind], folder)
    tracker.begin(CONFIG, "tiny", ())
    with caplog.at_level(logging.WARNING):
        tracker.round_done({"accuracy": 1.0})  # a row without a round
        tracker.round_done(ROWS[0])
        tracker.end()
    record, logged = [it for it in caplog.records if it.name.startswith("mest_fed")]
    assert (logged.name, logged.exc_info[0]) == (RUN_LOG, KeyError)  # the traceback, for run.log
    assert record.message.startswith(f"--log {kind} stopped (KeyError: ")
    assert record.message.endswith("); the run goes on without it")
    assert READERS[kind](folder) == {}


def test_a_run_and_its_sink_tell_the_same(kind, folder):
    folder.rmdir()
    config = tiny_config(run={"rounds": 3})
    with pytest.raises(Interrupted):
        start(folder, config, display=Observers(StopAfter(2), *open_trackers([kind], folder)))
    start(folder, resume=True, display=Observers(*open_trackers([kind], folder)))
    rows = read_rows(folder, "rounds")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    found = READERS[kind](folder)
    for key in ("accuracy", "bytes_up", "client_accuracy/median", "energy_joules"):
        wanted = [(row["round"], metrics(row).get(key)) for row in rows]
        wanted = [point for point in wanted if point[1] is not None]
        assert wanted
        assert found[key] == [(number, pytest.approx(value)) for number, value in wanted]


def test_mlflow_knows_the_configuration_and_how_the_run_ended(folder):
    pytest.importorskip("mlflow")
    log("mlflow", folder, ROWS[:3])
    _, run = mlflow_run(folder)
    assert run.info.status == "KILLED"
    assert run.data.params == {key: str(value) for key, value in to_flat(CONFIG).items()}
    log("mlflow", folder, ROWS[2:], done=ROWS[:2])
    _, resumed = mlflow_run(folder)
    assert (resumed.info.run_id, resumed.info.status) == (run.info.run_id, "FINISHED")
    assert resumed.info.run_name == "tiny"


def test_mlflow_tags_a_run_with_the_rounds_that_it_has_now(folder):
    pytest.importorskip("mlflow")
    log("mlflow", folder, ROWS)
    assert "run.rounds" not in mlflow_run(folder)[1].data.tags
    more = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"rounds": 9})})
    (tracker,) = open_trackers(["mlflow"], folder)
    tracker.begin(more, "tiny", ROWS)
    tracker.end()
    _, run = mlflow_run(folder)
    assert (run.data.tags["run.rounds"], run.info.status) == ("9", "KILLED")
    assert run.data.params["run.rounds"] == str(CONFIG.run.rounds)


def test_wandb_keeps_its_id_and_one_folder(folder):
    pytest.importorskip("wandb")
    names = []
    for done in (0, 2):
        log("wandb", folder, ROWS[done:], done=ROWS[:done])
        (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        names.append(file.name)
    assert names[0] == names[1]


def test_numbers_of_a_row_are_flat_and_finite():
    row = {"round": 3, "a": 1, "b": None, "c": {"d": 0.5, "e": float("nan")}, "f": "text"}
    assert metrics(row) == {"a": 1.0, "c/d": 0.5}


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--log wandb: .*; run: pip install 'mest-fed\[wandb\]'"):
        open_trackers(["wandb"], tmp_path)


def test_a_name_that_is_no_sink(tmp_path):
    with pytest.raises(InputError, match="--log = 'jsonl' is not allowed; allowed: tensorboard"):
        open_trackers(["jsonl"], tmp_path)


def test_a_run_that_stopped_early_is_finished(folder):
    pytest.importorskip("mlflow")
    log("mlflow", folder, [*ROWS[:2], ROWS[2] | {"stopped": "accuracy was 0.9 after round 2"}])
    _, run = mlflow_run(folder)
    assert run.info.status == "FINISHED"
