"""EngineGrid on Ray: the same bits as in one process, and workers that die."""

import gc
import logging
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from grid_apps import app, facts, model, to_all

from mest_fed.errors import InputError
from mest_fed.simulation.engine.executor import Executor, SerialExecutor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

pytestmark = pytest.mark.ray
logging.getLogger("flwr").setLevel(logging.ERROR)

NUM_NODES = 21


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Executor]:
    with warnings.catch_warnings():
        # Cores for a further executor, which joins this session.
        warnings.simplefilter("ignore", FutureWarning)
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    executor = make_executor(app, 2)
    yield executor
    executor.close()
    assert ray.is_initialized()
    ray.shutdown()
    gc.collect()


def play(executor: Executor) -> list[object]:
    """Play three rounds in which all train, some fail and one gets two messages."""
    grid = EngineGrid(make_nodes(NUM_NODES), executor)
    seen: list[object] = []
    for _ in range(3):
        seen += facts(grid.send_and_receive(to_all(grid, model(), "train")))
        seen += facts(grid.send_and_receive(to_all(grid, model(), "query.fail")[:3]))
        seen += facts(grid.send_and_receive(to_all(grid, model(), "train")[:5] * 2))
    return [*seen, grid.states]


@pytest.mark.soak
def test_outcomes_are_the_same_bits_on_none_one_and_two_workers(two_workers: Executor) -> None:
    expected = play(SerialExecutor(app))
    assert play(two_workers) == expected
    one_worker = make_executor("grid_apps:app", 1)  # joins the session that is there
    assert play(one_worker) == expected
    one_worker.close()
    assert play(two_workers) == expected


@pytest.mark.soak
def test_a_worker_that_dies_is_replaced_and_its_clients_run_again(
    two_workers: Executor, tmp_path: Path
) -> None:
    grid = EngineGrid(make_nodes(6), two_workers)
    content = RecordDict({"config": ConfigRecord({"folder": str(tmp_path)})})
    replies = list(grid.send_and_receive(to_all(grid, content, "query.die")))
    assert [reply.metadata.src_node_id - 1000 for reply in replies] == list(range(6))
    failed = [reply for reply in replies if reply.has_error()]
    assert [reply.metadata.src_node_id for reply in failed] == [1002]
    assert failed[0].error.code == 8
    assert failed[0].error.reason == "the worker process died 3 times while this client ran"
    assert set(grid.states) == {1000, 1001, 1003, 1004, 1005}


@pytest.mark.soak
def test_interrupting_does_not_wait_for_the_clients(two_workers: Executor) -> None:
    executor = make_executor(app, 1)
    grid = EngineGrid(make_nodes(3), executor)
    list(grid.send_and_receive(to_all(grid, model(), "evaluate")))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(grid.send_and_receive(to_all(grid, model(), "query.sleep")))
    executor.close()
    timer.join()
    assert time.monotonic() - started < 30  # a client sleeps for a minute


@pytest.mark.soak
def test_wrong_input_to_workers_is_one_line(two_workers: Executor) -> None:
    with pytest.raises(InputError, match="workers = 64 is not allowed; allowed: 1 to 3"):
        make_executor(app, 64)
    nobody = make_executor("grid_apps:nobody", 1)
    grid = EngineGrid(make_nodes(2), nobody)
    with pytest.raises(InputError, match="cannot load the ClientApp 'grid_apps:nobody'"):
        list(grid.send_and_receive(to_all(grid, model(), "train")))
    nobody.close()
    with pytest.raises(InputError, match='give it as "module:attribute"'):
        make_executor(_unpicklable(), 1)


def _unpicklable() -> ClientApp:
    lock, unpicklable = threading.Lock(), ClientApp()

    @unpicklable.train()
    def train(message: Message, context: Context) -> Message:
        with lock:
            return message

    return unpicklable


ALONE = """
import sys
import ray
from grid_apps import model, to_all
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

executor = make_executor("grid_apps:app", 1, *sys.argv[1:])
grid = EngineGrid(make_nodes(3), executor)
print(len(list(grid.send_and_receive(to_all(grid, model(), "train")))), ray.is_initialized())
executor.close()
print(ray.is_initialized(), *sys.argv[1:])
"""


def run_alone(*arguments: str) -> tuple[str, str]:
    """Run a script in a process of its own; return what it prints and what it complains of."""
    command = [sys.executable, "-c", ALONE, *arguments]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


@pytest.mark.soak
def test_an_executor_alone_starts_and_ends_ray_and_says_nothing() -> None:
    assert run_alone() == ("3 True\nFalse\n", "")


@pytest.mark.soak
def test_an_executor_joins_a_cluster_by_its_address(two_workers: Executor) -> None:
    address = ray.get_runtime_context().gcs_address
    assert run_alone(address) == (f"3 True\nFalse {address}\n", "")
    assert ray.is_initialized()
    list(EngineGrid(make_nodes(1), two_workers).send_and_receive([Message(model(), 1000, "train")]))


@pytest.mark.soak
def test_an_address_without_a_cluster_is_an_input_error() -> None:
    output, complaint = run_alone("127.0.0.1:1")
    assert output == ""
    last = complaint.splitlines()[-1]
    assert "InputError: cannot join the Ray cluster at '127.0.0.1:1': [Errno" in last
