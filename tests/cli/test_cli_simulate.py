"""``mest-fed simulate`` from command to report, in this process and in one that is interrupted."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import mest_fed.simulation.simulate
from mest_fed import cli
from mest_fed.cli.app import INTERRUPTED
from mest_fed.errors import InputError
from mest_fed.schema import TaskStatus
from mest_fed.server.run_folder import RunFolder
from mest_fed.simulation.peak_measurement import PeakMeasurement
from mest_fed.system.peak_meter import can_measure

SMALL = [
    "[run]",
    "rounds = 40",
    "checkpoint_every = 1000",
    "[model]",
    "width = 0.25",
    "[server]",
    "clients_per_round = 2",
    "evaluate_every = 5",
    "[fleet]",
    "devices = 12",
    'mix = "rpi-4"',
]
COMMAND = [sys.executable, "-c", "from mest_fed.cli import main; main()"]
PATIENCE = 120
END_OF_SETUP = "mest_fed.simulation.checkpoint.Snapshot.take"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("\n".join(SMALL), encoding="utf-8")
    return path


@pytest.fixture
def unmeasured(monkeypatch):
    """Leave out the measurement of memory, which takes seconds."""
    monkeypatch.setattr(PeakMeasurement, "start", lambda *_: PeakMeasurement(None))


def simulate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(
        sys, "argv", ["mest-fed", "simulate", "--workers", "0", *map(str, arguments)]
    )
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def read(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_from_command_to_report(monkeypatch, capsys, tmp_path, config):
    folder = tmp_path / "a folder [1]"
    settings = ("--set", "run.rounds=2", "--set", "run.seed=4")
    status, out, err = simulate(monkeypatch, capsys, "--config", config, *settings, "--out", folder)
    assert status == 0
    assert f"report: {folder / 'report.html'}\n" in err
    assert "virtual time (modelled)" in err
    summary = read(folder)
    table = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["round"] for row in table] == ["0", "1", "2"]
    for status in TaskStatus:
        assert sum(int(row[status]) for row in table) == summary["tasks"][status]
    assert summary["devices"] == 12
    assert 1 <= summary["devices_asked"] <= 4
    assert f"of 12 devices {summary['devices_asked']} were asked" in err
    assert (summary["preset"], summary["rounds"], summary["seed"]) == ("small", 2, 4)
    (tier,) = summary["tiers"]
    assert (tier["measured_peak_bytes"] is not None) == can_measure()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    before = contents(folder)
    again = simulate(monkeypatch, capsys, "--config", config, *settings, "--out", folder)
    assert again[0] == 2
    assert "is not empty" in again[2]
    resumed = simulate(monkeypatch, capsys, "--resume", "--out", folder)
    assert resumed[0] == 2
    assert "is finished" in resumed[2]
    assert contents(folder) == before
    (folder / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["mest-fed", "report", str(folder)])
    with pytest.raises(SystemExit):
        cli.main()
    assert (folder / "report.html").exists()


@pytest.mark.soak
@pytest.mark.usefixtures("unmeasured")
def test_quiet_says_nothing(monkeypatch, capsys, tmp_path, config):
    settings = ("--set", "run.rounds=1", "--quiet", "--out", tmp_path / "run")
    assert simulate(monkeypatch, capsys, config, *settings) == (0, "", "")
    assert read(tmp_path / "run")["rounds"] == 1
    origin = json.loads((tmp_path / "run" / "provenance.json").read_text(encoding="utf-8"))
    assert origin["base"] == ""  # a file of one's own is no preset
    assert {"key": "run.rounds", "before": "10", "after": "1"} in origin["changes"]
    assert (tmp_path / "run" / "labels.json").exists()


@pytest.mark.soak
@pytest.mark.slow
def test_ctrl_c_and_resume(tmp_path, config):
    folder = tmp_path / ("a rather long name of a folder " * 3).strip()
    with subprocess.Popen(
        [*COMMAND, "simulate", "--workers", "0", "--config", config, "--out", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for_rounds(process, folder, 2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED, err
    assert "Traceback" not in err
    assert f"stopped; go on with: mest-fed simulate --resume --out '{folder}' --workers 0\n" in err
    assert out.startswith("round\t")
    logged = rounds(folder)
    assert 2 <= logged[-1] < 40
    checkpoints = [path.stem for path in (folder / "checkpoints").iterdir()]
    # A row comes before its checkpoint, and the signal may come between them.
    assert int(max(checkpoints).removeprefix("round-")) >= logged[-1] - 1
    assert not (folder / "summary.json").exists()
    done = subprocess.run(
        [*COMMAND, "simulate", "--workers", "0", "--resume", "--out", folder],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rounds(folder) == list(range(41))
    assert read(folder)["preset"] == "small"
    assert (folder / "report.html").exists()


def rounds(folder):
    path = folder / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["round"] for line in lines]


def wait_for_rounds(process, folder, number):
    """Wait until a round has been logged."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if rounds(folder)[-1:] >= [number]:
            return
        time.sleep(0.05)
    pytest.fail(f"round {number} was never logged")


@pytest.mark.soak
@pytest.mark.usefixtures("unmeasured")
def test_a_corrupt_checkpoint(monkeypatch, capsys, tmp_path, config):
    folder = tmp_path / "run"
    settings = ("--set", "run.rounds=1", "--quiet", "--out", folder)
    simulate(monkeypatch, capsys, "--config", config, *settings)
    (folder / "summary.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.write_bytes(b"PK\x03\x04 and then nothing")
    before = contents(folder)
    status, out, err = simulate(monkeypatch, capsys, "--resume", "--quiet", "--out", folder)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert ".npz is not a whole checkpoint" in err
    assert contents(folder) == before


@pytest.mark.soak
@pytest.mark.usefixtures("unmeasured")
def test_a_corrupt_table_of_kernels(monkeypatch, capsys, tmp_path, config):
    folder = tmp_path / "run"
    settings = ("--set", "run.rounds=1", "--set", "training.kernels=tuned", "--quiet")
    simulate(monkeypatch, capsys, "--config", config, *settings, "--out", folder)
    (folder / "summary.json").unlink()
    (folder / "kernels.json").write_text('{"mode": "tuned"}', encoding="utf-8")
    before = contents(folder)
    status, out, err = simulate(monkeypatch, capsys, "--resume", "--quiet", "--out", folder)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"--resume: {folder / 'kernels.json'} has changed since the run wrote it" in err
    assert contents(folder) == before


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("unmeasured")
def test_what_cannot_start_leaves_the_folder_as_it_was(monkeypatch, capsys, tmp_path, config):
    settings = ("--config", config, "--set", "run.rounds=2", "--quiet")
    (tmp_path / "empty").mkdir()
    stopped = tmp_path / "stopped"
    monkeypatch.setattr(RunFolder, "write_summary", end)
    simulate(monkeypatch, capsys, *settings, "--out", stopped)
    before = every_file(tmp_path)
    too_long = tmp_path.parent / ("x" * 80)  # for Ray's sockets
    too_long.mkdir(exist_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", str(too_long))
    for out in (tmp_path / "a" / "new", tmp_path / "empty"):
        status, _, err = simulate(monkeypatch, capsys, *settings, "--out", out, "--workers", "1")
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("error: Ray cannot start: ")
    again = ("--resume", "--out", stopped, "--quiet", "--workers", "1")
    status, _, err = simulate(monkeypatch, capsys, *again)
    assert (status, err.count("\n")) == (2, 1)
    assert every_file(tmp_path) == before
    monkeypatch.setattr(mest_fed.simulation.simulate, "CLIENT_APP", "there_is:nothing")
    status, _, err = simulate(monkeypatch, capsys, *settings, "--out", tmp_path / "new")
    assert err.startswith("error: cannot load the ClientApp 'there_is:nothing': ")
    assert every_file(tmp_path) == before


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("where", ["mest_fed.simulation.simulate.save_partitions", END_OF_SETUP])
def test_a_run_that_ends_before_its_first_checkpoint_is_put_back(
    monkeypatch, capsys, tmp_path, config, where
):
    (tmp_path / "empty").mkdir()

    def fail(*_, **__):
        raise InputError("the disk is full")

    monkeypatch.setattr(where, fail)
    for out in (tmp_path / "a" / "new", tmp_path / "empty"):
        status, _, err = simulate(monkeypatch, capsys, "--config", config, "--quiet", "--out", out)
        assert (status, err) == (2, "error: the disk is full\n")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty", config]


@pytest.mark.soak
@pytest.mark.usefixtures("unmeasured")
def test_a_new_run_is_told_what_is_in_the_folder(monkeypatch, capsys, tmp_path, config):
    settings = ("--config", config, "--set", "run.rounds=1", "--quiet", "--out", tmp_path / "a b")
    monkeypatch.setattr(RunFolder, "write_summary", end)
    simulate(monkeypatch, capsys, *settings)
    status, _, err = simulate(monkeypatch, capsys, *settings)
    assert status == 2
    assert err.endswith(f"go on with: mest-fed simulate --resume --out '{tmp_path / 'a b'}'\n")
    shutil.rmtree(tmp_path / "a b" / "checkpoints")  # as if it had been killed before the first
    status, _, err = simulate(monkeypatch, capsys, *settings)
    assert (status, err.count("\n")) == (2, 1)
    assert "it holds a run without a checkpoint, which cannot be resumed" in err


def end(*_, **__):
    """Raise what ends the command as if the run had been stopped."""
    raise KeyboardInterrupt


def every_file(folder):
    """Return the bytes of all files, and all folders."""
    paths = sorted(folder.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def contents(folder):
    """Return the bytes of all files but the store's, whose book-keeping changes as it is opened."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.parent.name != "states"}


def test_ctrl_c_before_the_run_begins_is_a_line(monkeypatch, capsys, tmp_path, config):
    folder = tmp_path / "run"
    monkeypatch.setattr("mest_fed.simulation.simulate.open_run", end)
    said = simulate(monkeypatch, capsys, "--config", config, "--out", folder, "--quiet")
    line = "interrupted before the run began; nothing was written\n"
    assert said == (INTERRUPTED, "", line)
    assert not folder.exists()


@pytest.mark.usefixtures("unmeasured")
def test_ctrl_c_before_the_first_checkpoint_leaves_no_folder(monkeypatch, capsys, tmp_path, config):
    monkeypatch.setattr(END_OF_SETUP, end)
    folder = tmp_path / "new" / "run"
    said = simulate(monkeypatch, capsys, "--config", config, "--quiet", "--out", folder)
    assert said == (INTERRUPTED, "", "interrupted before the first checkpoint; nothing was kept\n")
    assert not folder.parent.exists()


def test_an_interruption_while_libraries_are_loaded_ends_at_once():
    # An exception would be lost where a library catches it.
    code = (
        "import contextlib, os, signal\n"
        "from mest_fed.cli.interruption import Interruptible\n"
        "with Interruptible(lambda: None), contextlib.suppress(BaseException):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    line = "interrupted before the run began; nothing was written\n"
    assert (done.returncode, done.stderr) == (INTERRUPTED, line)


@pytest.mark.soak
@pytest.mark.usefixtures("unmeasured")
def test_the_time_of_earlier_commands_is_told_apart(monkeypatch, capsys, tmp_path, config):
    folder = tmp_path / "run"
    few = ("--config", config, "--set", "run.rounds=1", "--out", folder)
    _, _, err = simulate(monkeypatch, capsys, *few)
    assert re.search(r"; the rounds took \S+ \S+, the command \S+ \S+ \(measured\)", err)
    _, _, err = simulate(monkeypatch, capsys, "--resume", "--rounds", 1, "--out", folder)
    both = r"; the rounds took \S+ \S+, \S+ \S+ of them in this command, the command \S+ \S+ \("
    assert re.search(both, err)
