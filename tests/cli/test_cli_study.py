"""``mest-fed study`` from file to page, in real processes: ended, interrupted, killed, resumed."""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from study_commands import (
    PATIENCE,
    SEEDS,
    begin,
    rows_of,
    run,
    run_here,
    table_of,
    write_study,
)

from mest_fed import cli
from mest_fed.cli import study
from mest_fed.cli.app import INTERRUPTED, NOTHING_TRAINED, WRONG_INPUT
from mest_fed.cli.studies import dry_run
from mest_fed.config import from_table, read_toml
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.study.study_folder import RunState


def wait_for(condition, process):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def rounds_done(folder, run):
    path = folder / "runs" / run / "rounds.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def children_of(pid):
    """Return the ids of the processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parts = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(parts[1]) == pid:
            found.append(int(path.parent.name))
    return found


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_alone(folder, row, place):
    """A cell's run is the run that its configuration gives elsewhere, bit for bit."""
    path = folder / "runs" / row["run"] / "config.toml"
    config = from_table(read_toml(path), str(path))
    again = load_run(open_run("small", config, place).run(0))
    assert again.summary.model_sha256 == row["model_sha256"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A study that is killed in its last cell, and resumed; every other cell fails."""
    place = tmp_path_factory.mktemp("killed")
    axes = '[axes]\n"run.rounds" = [2, 20]\nbudget = ["1B", "30MB"]\n'
    file, folder = write_study(place, axes), place / "s"
    short, long = "rounds=2,budget=30MB", "rounds=20,budget=30MB"
    process = begin(file, "--out", folder)
    wait_for(lambda: rounds_done(folder, long) > 4, process)
    (runner,) = children_of(process.pid)
    process.kill()
    process.communicate()
    # Nobody waits for the run any more: it writes a checkpoint and ends.
    until = time.monotonic() + PATIENCE
    while not gone(runner) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(runner)
    ended = (folder / "runs" / short / "summary.json").stat().st_mtime_ns
    assert not (folder / "runs" / long / "summary.json").exists()
    done = rounds_done(folder, long)
    status, table, err = run(file, "--out", folder, "--resume")
    return SimpleNamespace(**locals())


@pytest.mark.slow
def test_a_killed_study_is_resumed_and_ends_as_one_that_was_not(killed, tmp_path):
    folder = killed.folder
    assert [row["cell"] for row in killed.table if row["status"] == "done"] == [killed.long]
    assert killed.short not in {row["cell"] for row in killed.table}
    ended = (folder / "runs" / killed.short / "summary.json").stat().st_mtime_ns
    assert ended == killed.ended
    assert rounds_done(folder, killed.long) == 21 >= killed.done

    rows = rows_of(folder)
    assert [row["cell"] for row in rows if row["status"] == "done"] == [killed.short, killed.long]
    check_alone(folder, rows[3], tmp_path / "alone")


@pytest.mark.slow
def test_a_cell_that_fails_is_said_and_tried_again_and_the_others_go_on(killed):
    assert killed.status == NOTHING_TRAINED
    wrong = ["rounds=2,budget=1B", "rounds=20,budget=1B"]
    assert [row["cell"] for row in killed.table] == [*wrong, killed.long]
    assert [row["status"] for row in killed.table] == ["failed", "failed", "done"]
    assert "rpi-4" in killed.table[0]["reason"]
    typed = f"--out {killed.folder} --workers 0"
    assert f"again: mest-fed study {killed.file} {typed} --resume" in killed.err
    assert "Traceback" not in killed.err
    rows = rows_of(killed.folder)
    assert [row["status"] for row in rows] == ["failed", "done", "failed", "done"]
    assert (rows[0]["cell"], rows[0]["final"]) == (wrong[0], None)
    assert rows[0]["reason"] == killed.table[0]["reason"]
    page = (killed.folder / "study.html").read_text()
    assert "2 of 4 cells are not done" in page


@pytest.mark.soak
@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(tmp_path):
    file, folder = write_study(tmp_path, SEEDS, rounds=400), tmp_path / "s"
    process = begin(file, "--out", folder, "--cells", "seed=1", "--cells", "seed=2")
    wait_for(lambda: rounds_done(folder, "seed=1") > 3, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED
    chosen = "--cells seed=1 --cells seed=2 --workers 0"
    assert f"stopped; go on with: mest-fed study {file} --out {folder} {chosen} --resume\n" in err
    assert "Traceback" not in err
    assert table_of(out) == []
    assert any((folder / "runs" / "seed=1" / "checkpoints").iterdir())


def test_how_to_go_on_has_the_options_that_were_typed(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_run", interrupt)
    file, folder = write_study(tmp_path, SEEDS), tmp_path / "a b"
    options = ("--parallel", "2", "--cells", "seed=1", "--cells", "seed=2", "--data", "here")
    status, _, err = run_here(monkeypatch, capsys, file, "--out", folder, "--quiet", *options)
    assert status == INTERRUPTED
    typed = f"--out '{folder}' --parallel 2 --cells seed=1 --cells seed=2 --data here --workers 0"
    said = f"stopped; go on with: mest-fed study {file} {typed} --quiet --resume"
    assert err.splitlines()[-1] == said


@pytest.mark.soak
@pytest.mark.slow
def test_an_interruption_leaves_the_page_of_what_is_done(tmp_path):
    file, folder = write_study(tmp_path, '[axes]\n"run.rounds" = [2, 400]\n'), tmp_path / "s"
    process = begin(file, "--out", folder)
    wait_for(lambda: rounds_done(folder, "rounds=400") > 3, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED, err
    assert f"page of what is done: {folder / 'study.html'}\n" in err
    first, *others = table_of(out)
    assert first["cell"] == "rounds=2"
    # The run was interrupted, too, and may have said so before.
    assert [row["status"] for row in others] in ([], ["interrupted"])
    assert [row["status"] for row in rows_of(folder)] == ["done", "interrupted"]


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_whose_process_dies_costs_its_cell_alone(tmp_path):
    file, folder = write_study(tmp_path, SEEDS, rounds=20), tmp_path / "s"
    process = begin(file, "--out", folder)
    wait_for(lambda: rounds_done(folder, "seed=1") > 3, process)
    (runner,) = children_of(process.pid)
    os.kill(runner, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == NOTHING_TRAINED, err
    table = table_of(out)
    assert [row["status"] for row in table] == ["failed", "done"]
    assert table[0]["reason"] == "its process was ended by SIGKILL; memory may have run out"
    status, table, _ = run(file, "--out", folder, "--cells", "seed=1", "--resume")
    assert status == 0
    assert [row["status"] for row in table] == ["done"]
    assert [row["status"] for row in rows_of(folder)] == ["done", "done"]


@pytest.mark.soak
@pytest.mark.slow
def test_two_cells_at_a_time_give_the_same(tmp_path):
    file = write_study(tmp_path, SEEDS)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(file, "--out", one, "--format", "csv")[0] == 0
    assert run(file, "--out", two, "--parallel", "2")[0] == 0
    with (one / "results.csv").open() as stream:
        alone = [row["model_sha256"] for row in csv.DictReader(stream)]
    assert alone == [row["model_sha256"] for row in rows_of(two)]
    assert len(set(alone)) == 2


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.ray
def test_rays_workers_give_the_same(tmp_path):
    file, one, two = write_study(tmp_path, SEEDS), tmp_path / "one", tmp_path / "two"
    assert run(file, "--out", one)[0] == 0
    process = begin(file, "--out", two, workers=1)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.count("\tdone\t") == 2
    found = [[row["model_sha256"] for row in rows_of(folder)] for folder in (one, two)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_dry_run_prices_each_cell_and_writes_nothing(tmp_path, monkeypatch, capsys):
    axes = '[axes]\nmethod = ["dense", "static"]\nbudget = ["30MB", "1B"]\nseed = [1, 2]\n'
    file = write_study(tmp_path, axes)
    chosen = ("--cells", "*dense*=1", "--cells", "method=static,*1B*")
    options = ("--out", tmp_path / "s", "--dry-run", *chosen)
    status, out, err = run_here(monkeypatch, capsys, file, *options)
    assert (status, err.splitlines()[-1]) == (WRONG_INPUT, "3 of 4 cells would fail"), err
    assert "4 cells, 4 runs" in out
    # A sentence is one line of the pipe, and is said once of all seeds.
    lines = out.splitlines()
    (static,) = [line for line in lines if line.startswith("2 cells would fail, the first ")]
    assert "method=static,budget=1B,seed=1: " in static
    assert static.endswith("micro-batch 1)")
    (dense,) = [line for line in lines if line.startswith("method=dense,budget=1B,seed=1 would ")]
    assert dense.partition(": ")[2] != static.partition(": ")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_a_dry_run_whose_cells_all_fit_ends_with_status_0(tmp_path, monkeypatch, capsys):
    file = write_study(tmp_path, SEEDS)
    options = ("--out", tmp_path / "s", "--dry-run", "--cells", "seed=1")
    status, out, err = run_here(monkeypatch, capsys, file, *options)
    assert status == 0, err
    assert "would fail" not in out + err
    assert "1 cell, 1 run;" in out


def test_cells_that_are_done_are_none_that_would_fail():
    states = {"a": RunState.NEW, "b": RunState.ENDED, "c": RunState.KNOWN, "d": RunState.RESUMABLE}
    folder = SimpleNamespace(state=lambda cell: states[cell.run])
    cells = [SimpleNamespace(id=each, run=each) for each in states]
    assert dry_run._failing(cells, folder, dict.fromkeys(states, "why")) == {"why": ["a", "d"]}


def test_folders_that_a_study_cannot_have(tmp_path, monkeypatch, capsys):
    file = write_study(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "cells.json").write_text(json.dumps({"study": "another", "runs": {}}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, said in (
        (("--out", tmp_path / "none", "--resume"), "--resume: no study in"),
        (("--out", file), "is a file; allowed: a folder"),
        (("--out", tmp_path / "full"), "is not empty; allowed: a new folder"),
        (("--out", other), "holds a study already; allowed: --resume"),
        (("--out", other, "--resume"), "is the folder of the study 'another'; allowed: that of"),
        (("--out", tmp_path / "n", "--cells", "x*"), "--cells = 'x*' is not allowed"),
        (("--out", tmp_path / "n", "--record", tmp_path / "full"), "is no record"),
        (("--out", tmp_path / "n", "--reuse", other), "no record: environment.json is missing"),
        (("--out", tmp_path / "n", "--format", "xls"), "--format = 'xls' is not allowed"),
    ):
        monkeypatch.setattr(sys, "argv", ["mest-fed", "study", *map(str, (file, *arguments))])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (WRONG_INPUT, "")
        assert said in err
        assert err.count("\n") == 1
    assert not (tmp_path / "n").exists()
