"""Real runs that are disturbed from outside: they go on, or resume, to the same weights."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
from fault_run import SECONDS, Folders, finish
from tiny_run import read_rows, read_summary, start, tiny_config

from mest_fed.cli.app import INTERRUPTED

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# Moments make checkpoints larger than all other files of the run.
SERVER = {"clients_per_round": 4, "optimizer": "fedadam", "learning_rate": 0.05}
RUN = {"rounds": 3, "seed": 5, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = tiny_config(run=RUN, server=SERVER)
    return config, start(tmp_path_factory.mktemp("undisturbed") / "run", config)


@pytest.fixture
def folders(undisturbed, tmp_path):
    with Folders(tmp_path, undisturbed[0]) as folders:
        yield folders


def assert_same_end(folders, undisturbed):
    """Compare the weights and, client by client and round by round, who counted and how much."""
    expected = undisturbed[1]
    assert read_summary(folders.run)["model_sha256"] == read_summary(expected)["model_sha256"]
    assert read_rows(folders.run, "clients") == read_rows(expected, "clients")


@pytest.mark.soak
def test_a_worker_killed_and_a_second_run_in_the_folder(folders, undisturbed):
    run = folders.simulate("--workers", "2")
    worker = folders.held(run)
    checkpoints = sorted((folders.run / "checkpoints").iterdir())
    second = finish(folders.simulate("--workers", "0", resume=True))
    assert second[0] == 2
    assert second[1].count("\n") == 1
    assert f"is in use by another run (process {run.pid} on " in second[1]
    assert sorted((folders.run / "checkpoints").iterdir()) == checkpoints
    os.kill(worker, signal.SIGKILL)
    assert finish(run) == (0, "")
    assert_same_end(folders, undisturbed)
    log = (folders.run / "run.log").read_text(encoding="utf-8")
    assert log.count("WARNING a worker died with the clients of nodes 10") == 1


@pytest.mark.soak
def test_the_driver_killed(folders, undisturbed):
    run = folders.simulate("--workers", "2")
    folders.held(run)
    left = ray_processes(run.pid)
    run.kill()
    run.wait()
    # Long before Ray's own processes notice it.
    _, alive = psutil.wait_procs(left, timeout=10)
    assert [process.name() for process in alive if not _is_zombie(process)] == []
    (folders.faults / "go").touch()
    status, errors = finish(folders.simulate("--workers", "1"))
    assert status == 2
    assert errors.endswith(f"go on with: mest-fed simulate --resume --out {folders.run}\n")
    assert errors.count("\n") == 1
    assert finish(folders.simulate("--workers", "1", resume=True)) == (0, "")
    assert_same_end(folders, undisturbed)


def ray_processes(driver):
    """Wait until the two workers and two agents have their names; return all of the driver's."""
    end = time.monotonic() + SECONDS
    while True:
        processes = psutil.Process(driver).children(recursive=True)
        names = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                names.append(process.name())
        if sum(name.startswith("ray::") for name in names) >= 4:
            return processes
        assert time.monotonic() < end, names
        time.sleep(0.1)


def _is_zombie(process):
    """Say whether a process has ended, and none has asked how: some containers' first do not."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.soak
def test_the_driver_ended_by_a_signal(folders, undisturbed):
    run = folders.simulate("--workers", "1")
    folders.held(run)
    run.terminate()
    out, errors = run.communicate(timeout=60)
    assert (run.returncode, out) == (INTERRUPTED, "")
    typed = f"--out {folders.run} --workers 1 --quiet"
    assert errors == f"stopped; go on with: mest-fed simulate --resume {typed}\n"
    (folders.faults / "go").touch()
    assert finish(folders.simulate("--workers", "0", resume=True)) == (0, "")
    assert_same_end(folders, undisturbed)


@pytest.mark.parametrize(
    ("most_bytes", "what"),
    [
        pytest.param(100_000, "cannot write the checkpoint", marks=pytest.mark.soak),
        pytest.param(20_000, "clients' states in", marks=pytest.mark.soak),
        pytest.param(1_000, "clients.jsonl: File too large", marks=pytest.mark.soak),
    ],
)
def test_the_disk_full(folders, undisturbed, most_bytes, what):
    full = folders.simulate("--workers", "0", MEST_FULL_AT=str(most_bytes))
    status, errors = finish(full)
    assert status == 2
    assert what in errors
    assert errors.count("\n") == 1
    kept = [path.name for path in sorted((folders.run / "checkpoints").iterdir())]
    assert kept == ["round-000000.npz", "round-000001.npz"]
    assert finish(folders.simulate("--workers", "0", resume=True)) == (0, "")
    assert_same_end(folders, undisturbed)
