"""``mest-fed study`` from file to page, in real processes: ended, interrupted, killed, resumed."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from mest_fed import cli
from mest_fed.cli.app import INTERRUPTED, NOTHING_TRAINED, WRONG_INPUT
from mest_fed.config import from_table, read_toml
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.simulate import open_run
from mest_fed.simulation.study.record import BEGIN, read_record, tables_of

SMALL = """
[study]
preset = "plain"
REFERENCE

[settings]
run.rounds = ROUNDS
run.checkpoint_every = 1
model.width = 0.25
training.device = "cpu"
server.clients_per_round = 2
server.evaluate_every = 5
server.evaluate_clients_every = 0
fleet.devices = 6
fleet.mix = "rpi-4:1"
behaviour.availability = "always"
"""
AXES = '[axes]\nmethod = ["static", "mest-em"]\nseed = [1, 2]\n'
SEEDS = "[axes]\nseed = [1, 2]\n"
COMMAND = [sys.executable, "-c", "from mest_fed.cli import main; main()", "study"]
#: For a command that a test waits for.
PATIENCE = 240


def write_study(folder, axes=AXES, rounds=2):
    path = folder / "small.toml"
    reference = 'reference = { method = "static" }' if axes == AXES else ""
    text = SMALL.replace("ROUNDS", str(rounds)).replace("REFERENCE", reference)
    path.write_text(text + axes, encoding="utf-8")
    return path


def begin(*arguments, workers=0):
    """Start a study in a process group of its own, as a shell does."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments):
    """Run a study to its end; return status, rows of standard output, standard error."""
    process = begin(*arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, list(csv.DictReader(io.StringIO(out), delimiter="\t")), err


def rows_of(folder):
    return pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()


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


@pytest.mark.slow
def test_from_file_to_page_and_record(tmp_path):
    folder, record = tmp_path / "a study", tmp_path / "records" / "small"
    status, table, err = run(
        write_study(tmp_path), "--out", folder, "--record", record, "--figures", tmp_path / "f"
    )
    assert status == 0, err
    ids = [f"method={method},seed={seed}" for method in ("static", "mest-em") for seed in (1, 2)]
    assert [row["cell"] for row in table] == ids
    assert {row["status"] for row in table} == {"done"}
    rows = rows_of(folder)
    assert [row["cell"] for row in rows] == ids
    assert [(row["method"], row["seed"]) for row in rows[:2]] == [("static", 1), ("static", 2)]
    for row in rows:
        run_folder = folder / "runs" / row["run"]
        summary = json.loads((run_folder / "summary.json").read_text())
        assert row["model_sha256"] == summary["model_sha256"]
        assert row["final"] == summary["final_accuracy"]
        assert row["traffic_bytes"] == summary["bytes_up"] + summary["bytes_down"]
        assert (run_folder / "report.html").exists()
    by_round = pyarrow.parquet.read_table(folder / "rounds.parquet").to_pylist()
    assert [row["round"] for row in by_round] == 4 * [0, 1, 2]
    assert by_round[2]["bytes_up"] == rows[0]["bytes_up"]
    assert "study.html" in err
    check_record(record, rows)
    assert {path.suffix for path in (tmp_path / "f").iterdir()} == {".svg", ".pdf"}
    check_alone(folder, rows[2], tmp_path / "alone")


def check_record(record, rows):
    """The tables of a record are those of its rows, and what a person wrote stays."""
    page = (record / "README.md").read_text()
    assert tables_of(read_record(record)) in page
    assert rows_of(record) == rows
    assert len(list((record / "configurations").iterdir())) == 4
    assert json.loads((record / "environment.json").read_text())["versions"]["mest-fed"]
    assert page.index(BEGIN) < page.index("## Reading")


def check_alone(folder, row, place):
    """A cell's run is the run that its configuration gives elsewhere, bit for bit."""
    path = folder / "runs" / row["run"] / "config.toml"
    config = from_table(read_toml(path), str(path))
    again = load_run(open_run("small", config, place).run(0))
    assert again.summary.model_sha256 == row["model_sha256"]


@pytest.mark.slow
def test_a_killed_study_is_resumed_and_ends_as_one_that_was_not(tmp_path):
    file, folder = write_study(tmp_path, SEEDS, rounds=20), tmp_path / "s"
    first, second = "seed=1", "seed=2"
    process = begin(file, "--out", folder)
    wait_for(lambda: rounds_done(folder, second) > 4, process)
    (runner,) = children_of(process.pid)
    process.kill()
    process.communicate()
    # Nobody waits for the run any more: it writes a checkpoint and ends.
    until = time.monotonic() + PATIENCE
    while not gone(runner) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(runner)
    ended = (folder / "runs" / first / "summary.json").stat().st_mtime_ns
    assert not (folder / "runs" / second / "summary.json").exists()
    done = rounds_done(folder, second)

    status, table, err = run(file, "--out", folder, "--resume")
    assert status == 0, err
    assert table[0]["cell"] == second
    assert len(table) == 1
    assert (folder / "runs" / first / "summary.json").stat().st_mtime_ns == ended
    assert rounds_done(folder, second) == 21 >= done

    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["done", "done"]
    check_alone(folder, rows[1], tmp_path / "alone")


@pytest.mark.soak
@pytest.mark.slow
def test_an_interruption_says_how_to_go_on(tmp_path):
    file, folder = write_study(tmp_path, SEEDS, rounds=400), tmp_path / "s"
    process = begin(file, "--out", folder, "--cells", "seed=1", "--cells", "seed=2")
    wait_for(lambda: rounds_done(folder, "seed=1") > 3, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == INTERRUPTED
    chosen = "--cells seed=1 --cells seed=2"
    assert f"stopped; go on with: mest-fed study {file} --out {folder} {chosen} --resume\n" in err
    assert "Traceback" not in err
    assert list(csv.DictReader(io.StringIO(out), delimiter="\t")) == []
    assert any((folder / "runs" / "seed=1" / "checkpoints").iterdir())


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
    assert [row["cell"] for row in csv.DictReader(io.StringIO(out), delimiter="\t")] == ["rounds=2"]
    assert [row["status"] for row in rows_of(folder)] == ["done", "interrupted"]


@pytest.mark.slow
def test_a_cell_that_fails_is_said_and_the_others_go_on(tmp_path):
    axes = '[axes]\nbudget = ["1B", "30MB"]\nmethod = ["static"]\n'
    file, folder = write_study(tmp_path, axes), tmp_path / "s"
    status, table, err = run(file, "--out", folder)
    assert status == NOTHING_TRAINED
    assert [row["status"] for row in table] == ["failed", "done"]
    assert "rpi-4" in table[0]["reason"]
    assert f"again: mest-fed study {file} --out {folder} --resume" in err
    assert "Traceback" not in err
    failed, done = rows_of(folder)
    assert (failed["status"], failed["final"]) == ("failed", None)
    assert failed["reason"] == table[0]["reason"]
    page = (folder / "study.html").read_text()
    assert "1 of 2 cells are not done" in page
    status, table, _ = run(file, "--out", folder, "--resume")
    assert status == NOTHING_TRAINED
    assert [row["cell"] for row in table] == [failed["cell"]]
    assert done["status"] == "done"


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
    table = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
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
def test_a_dry_run_prices_each_cell_and_writes_nothing(tmp_path):
    axes = '[axes]\nmethod = ["dense", "static"]\nbudget = ["30MB", "1B"]\n'
    file = write_study(tmp_path, axes)
    chosen = ("--cells", "*dense*", "--cells", "method=static,*1B")
    process = begin(file, "--out", tmp_path / "s", "--dry-run", *chosen)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.count("would fail: ") == 2
    assert "3 cells, 3 runs" in out
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


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
