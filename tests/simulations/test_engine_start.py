"""Workers that die while they start, and a Ray that does not start at all."""

import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from grid_apps import facts, model, to_all

from mest_fed.errors import InputError
from simulations.engine.executor import Executor, make_executor
from simulations.engine.grid import FleetGrid
from simulations.engine.nodes import make_nodes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:unclosed file .*/dev/null.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
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


def play(executor: Executor) -> list[object]:
    try:
        grid = FleetGrid(make_nodes(5), executor)
        return facts(grid.send_and_receive(to_all(grid, model(), "train")))
    finally:
        executor.close()


@pytest.fixture(scope="module")
def undisturbed() -> list[object]:
    return play(make_executor("grid_apps:app", 0))


def test_workers_that_are_killed_while_they_load_the_client_are_replaced(
    imports: Path, undisturbed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "2")
    assert play(make_executor("mortal_app:app", 2)) == undisturbed
    assert len(os.listdir(imports)) == 4


@pytest.mark.slow
def test_workers_that_always_die_while_they_start_are_one_line(
    imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "100")
    with pytest.raises(InputError, match=r"^5 worker processes in a row died"):
        play(make_executor("mortal_app:app", 2))
    assert len(os.listdir(imports)) <= 6


def test_a_client_that_exits_when_it_is_imported_is_named_at_once(
    imports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEST_DEATHS", "exit")
    named = "^cannot load the ClientApp 'mortal_app:app': SystemExit: no license found$"
    with pytest.raises(InputError, match=named):
        play(make_executor("mortal_app:app", 2))
    assert len(os.listdir(imports)) <= 2
    with pytest.raises(InputError, match=named):
        make_executor("mortal_app:app", 0)


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


def test_a_grid_whose_workers_have_ended_says_so() -> None:
    executor = make_executor("grid_apps:app", 1)
    grid = FleetGrid(make_nodes(2), executor)
    arrived, unread = grid.push_messages(to_all(grid, model(), "evaluate"))
    assert grid.pull_messages([arrived])
    executor.close()
    with pytest.raises(RuntimeError, match="executor is closed"):
        grid.send_and_receive(to_all(grid, model(), "evaluate"))
    assert grid.pull_messages([unread])[0].has_content()  # it had come before
