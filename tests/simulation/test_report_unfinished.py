"""The report of a run that is not finished, and rows that were lost."""

import json

import pytest
from tiny_run import StopAfter, start, tiny_config

from mest_fed.errors import InputError
from mest_fed.simulation.report import run_tables, write_report
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.rounds import Interrupted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return start(tmp_path_factory.mktemp("finished") / "run", tiny_config())


@pytest.fixture
def stopped(tmp_path):
    run = {"rounds": 3, "seed": 5, "checkpoint_every": 100}
    with pytest.raises(Interrupted):
        start(tmp_path / "run", tiny_config(run=run), display=StopAfter(2))
    return tmp_path / "run"


@pytest.mark.soak
def test_it_is_shown_up_to_its_checkpoint_and_marked(stopped, finished):
    with (stopped / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 3, "accu')  # it was just about to write this
    before = {path: path.read_bytes() for path in stopped.rglob("*.*") if path.is_file()}
    run = load_run(stopped, unfinished=True)
    whole = load_run(finished)
    assert run.summary.unfinished == "the run is not finished: it came to round 2 of 3"
    assert [row.round for row in run.rounds] == [0, 1, 2]
    assert run.tasks == tuple(task for task in whole.tasks if task.round <= 2)
    assert run.summary.tiers == whole.summary.tiers
    assert run.summary.bytes_up == sum(row.bytes_up for row in whole.rounds[:3])
    page = write_report(stopped).read_text(encoding="utf-8")
    assert "The run is not finished: it came to round 2 of 3." in page
    assert not (stopped / "summary.json").exists()
    assert before == {path: path.read_bytes() for path in before}
    assert len(run_tables(stopped)["rounds"]) == 3


def test_a_finished_run_is_not_marked(finished):
    assert load_run(finished).summary.unfinished is None
    assert "unfinished" not in json.loads((finished / "summary.json").read_text())


def test_rows_that_the_checkpoint_does_not_know_of_are_refused(stopped):
    rows = stopped / "clients.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(InputError, match=r"^report: .*clients\.jsonl has changed since"):
        load_run(stopped, unfinished=True)


def test_without_a_checkpoint_there_is_nothing_to_show_nor_to_go_on_with(stopped):
    for checkpoint in (stopped / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(InputError, match="came to nothing that a report could show"):
        write_report(stopped)
    with pytest.raises(InputError, match="ended before its first checkpoint; begin it anew"):
        load_run(stopped)  # as for a comparison
    with pytest.raises(InputError, match="ended before its first checkpoint"):
        start(stopped, resume=True)


@pytest.mark.parametrize("line", [1, 4, None])
def test_rows_of_tasks_that_were_lost_are_not_summed(finished, tmp_path, line):
    rows = finished / "clients.jsonl"
    before = rows.read_bytes()
    lines = before.splitlines(keepends=True)
    try:
        rows.write_bytes(b"" if line is None else b"".join(lines[:line] + lines[line + 1 :]))
        with pytest.raises(InputError, match=r"clients\.jsonl holds \d+ tasks that ended as "):
            load_run(finished)
    finally:
        rows.write_bytes(before)


def test_a_round_that_was_lost_is_not_passed_over(finished):
    rows = finished / "rounds.jsonl"
    before = rows.read_bytes()
    lines = before.splitlines(keepends=True)
    try:
        rows.write_bytes(b"".join([*lines[:1], *lines[2:]]))
        with pytest.raises(InputError, match=r"round 2 follows round 0; rows are missing"):
            load_run(finished)
    finally:
        rows.write_bytes(before)


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl"])
def test_a_folder_in_a_file_s_place_is_one_line(stopped, name):
    (stopped / name).unlink()
    (stopped / name).mkdir()
    with pytest.raises(InputError, match=rf"{name} cannot be read: Is a directory"):
        start(stopped, resume=True)
