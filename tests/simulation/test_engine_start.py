"""Workers that die while they start, and a Ray that does not start at all."""

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from grid_apps import facts, model, to_all

from mest_fed.errors import InputError
from mest_fed.simulation.engine import marked
from mest_fed.simulation.engine import ray_session as session
from mest_fed.simulation.engine.executor import Executor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

pytestmark = pytest.mark.ray
logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "imports"
    folder.mkdir()
    monkeypatch.setenv("MEST_IMPORTS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()  # Ray's open files, while their warnings are ignored


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """Return a folder whose path Ray's sockets do not fit into."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    return folder


def play(executor: Executor) -> list[object]:
    try:
        grid = EngineGrid(make_nodes(5), executor)
        return facts(grid.send_and_receive(to_all(grid, model(), "train")))
    finally:
        executor.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[object]:
    return play(make_executor("grid_apps:app", 0))


@pytest.mark.soak
def test_workers_that_are_killed_while_they_load_the_client_are_replaced(
    imports: Path, undisturbed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "2")
    assert play(make_executor("mortal_app:app", 2)) == undisturbed
    assert len(os.listdir(imports)) == 4


@pytest.mark.soak
@pytest.mark.slow
def test_workers_that_always_die_while_they_start_are_one_line(
    imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "100")
    with pytest.raises(InputError, match=r"^5 worker processes in a row died"):
        play(make_executor("mortal_app:app", 2))
    assert len(os.listdir(imports)) <= 6


@pytest.mark.soak
def test_a_client_that_exits_when_it_is_imported_is_named_at_once(
    imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "exit")
    named = "^cannot load the ClientApp 'mortal_app:app': .*SystemExit: no license found"
    with pytest.raises(InputError, match=named):
        play(make_executor("mortal_app:app", 2))
    assert len(os.listdir(imports)) <= 2
    with pytest.raises(InputError, match=named):
        make_executor("mortal_app:app", 0)


@pytest.mark.soak
def test_workers_that_are_killed_from_outside_as_they_start_are_replaced(
    undisturbed: list[object],
) -> None:
    killed: list[float] = []
    over = threading.Event()

    def kill() -> None:
        """Kill two workers: each a little later after it has shown up."""
        seen: dict[psutil.Process, float] = {}
        while len(killed) < 2 and not over.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                try:
                    name = process.name()
                    since = seen.setdefault(process, time.monotonic())
                    due = time.monotonic() - since >= 0.8 * len(killed)
                    if name.startswith("ray::Fleet") and due and len(killed) < 2:
                        process.kill()
                        process.wait(5)
                        killed.append(time.monotonic())
                except psutil.Error:
                    continue

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert play(make_executor("grid_apps:app", 2)) == undisturbed
    finally:
        over.set()
        killer.join()
    assert len(killed) == 2


def test_ray_that_cannot_start_is_one_line(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(long_folder))
    with pytest.raises(InputError, match=r"^Ray cannot start: .*; allowed: --workers 0") as caught:
        make_executor("grid_apps:app", 1)
    assert "\n" not in str(caught.value)
    assert marked_processes() == []


def test_a_cluster_that_does_not_answer_is_one_line_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        for given, environment in ((address, ""), ("auto", address)):
            monkeypatch.setenv("RAY_ADDRESS", environment)
            with pytest.raises(InputError, match=f"^cannot join the Ray cluster at '{given}': "):
                make_executor("grid_apps:app", 1, given)
    # The cluster that was started here last has ended since.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1", encoding="utf-8")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match=r"at 'auto': \[Errno"):
        make_executor("grid_apps:app", 1, "auto")


@pytest.mark.soak
def test_a_session_of_its_own_ignores_ray_address_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    handler = signal.getsignal(signal.SIGTERM)
    executor = make_executor("grid_apps:app", 1)
    assert signal.getsignal(signal.SIGTERM) is handler
    grid = EngineGrid(make_nodes(2), executor)
    arrived, unread = grid.push_messages(to_all(grid, model(), "evaluate"))
    assert grid.pull_messages([arrived])
    assert len(marked_processes()) > 4
    executor.close()
    assert marked_processes() == []
    with pytest.raises(RuntimeError, match="executor is closed"):
        grid.send_and_receive(to_all(grid, model(), "evaluate"))
    assert grid.pull_messages([unread])[0].has_content()  # it had come before


def test_processes_of_a_driver_that_has_gone_end_with_the_next_start() -> None:
    def start(mark: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        return subprocess.Popen(command, env=os.environ | {marked.NAME: mark})

    own = marked.own_mark()
    namespace, pid, started = own.split("/")
    gone = [start(f"{namespace}/{pid}/{int(started) - 1}/a"), start(f"{namespace}/4194304/1/a")]
    others = [start(f"{own}/a"), start("pid:[1]/4194304/1/a"), start("nonsense")]
    while len(marked_processes()) < 5:
        time.sleep(0.02)
    marked.end_orphans()
    assert [process.wait(10) for process in gone] == [-signal.SIGKILL] * 2
    assert [process.poll() for process in others] == [None] * 3
    marked.end_session(f"{own}/a")
    assert others[0].wait(10) == -signal.SIGKILL
    for process in others[1:]:
        process.kill()
        process.wait()


@pytest.mark.soak
@pytest.mark.slow
def test_a_worker_that_is_killed_before_ray_knows_it_is_replaced(
    undisturbed: list[object],
) -> None:
    killed: list[psutil.Process] = []

    def kill() -> None:
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.name().startswith("ray::IDLE") and not killed:
                        process.kill()
                        killed.append(process)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert play(make_executor("grid_apps:app", 2)) == undisturbed
    killer.join(1)
    assert killed


def marked_processes() -> list[int]:
    """Return this process's descendants that are marked as those of a session."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if marked.NAME in process.environ():
                found.append(process.pid)
    return found
