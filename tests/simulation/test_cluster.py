"""Runs on a Ray cluster of several nodes, which share no disk and may be lost; flat memory."""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from fault_run import Folders, finish
from ray.cluster_utils import Cluster
from tiny_run import read_rows, read_summary, start, tiny_config

pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def cluster(faults):
    """A head without cores, and two nodes with one each, whose workers know no file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("MEST_FAULTS", str(faults))
        patch.setenv("MEST_ALONE", "1")
        # Where Ray's own processes look for modules.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    config = tiny_config(server={"clients_per_round": 4})
    return config, start(tmp_path_factory.mktemp("serial") / "run", config)


@pytest.fixture
def folders_of(tmp_path):
    """Return a function from a configuration to its folders; what it started ends with the test."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(Folders(tmp_path, config))


def assert_same_end(folder, expected):
    assert read_summary(folder)["model_sha256"] == read_summary(expected)["model_sha256"]
    assert read_rows(folder, "clients") == read_rows(expected, "clients")


@pytest.mark.soak
def test_two_nodes_that_share_no_disk(cluster, serial, faults, folders_of):
    folders = folders_of(serial[0])
    (faults / "held").touch()  # nobody holds still
    run = folders.simulate("--workers", "2", "--ray-address", cluster.address)
    assert finish(run) == (0, "")
    assert_same_end(folders.run, serial[1])
    processes = [int(path.name.partition("-")[2]) for path in faults.glob("process-*")]
    assert len(processes) == 2  # both had clients


def test_a_users_model_data_and_task_are_sent_to_the_nodes(cluster, folders_of, tmp_path):
    for name in ("own_nets.py", "own_sizes.py", "own_study.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path)
    # Both files assert where they are from.
    model = {"name": str(tmp_path / "own_nets.py:build"), "width": 1.0}
    data = {"name": str(tmp_path / "own_study.py:columns"), "partition": "iid"}
    task = {"name": str(tmp_path / "own_study.py:Brightness")}
    config = tiny_config(run={"rounds": 1}, model=model, data=data, task=task)
    folders = folders_of(config)
    expected = start(tmp_path / "serial", config)
    assert finish(folders.simulate("--workers", "2", "--ray-address", cluster.address)) == (0, "")
    assert_same_end(folders.run, expected)


@pytest.mark.soak
def test_a_node_lost(cluster, serial, faults, folders_of):
    folders = folders_of(serial[0])
    folders.faults = faults
    (faults / "held").unlink(missing_ok=True)
    run = folders.simulate("--workers", "2", "--ray-address", cluster.address)
    raylet = psutil.Process(folders.held(run)).ppid()
    (lost,) = [node for node in cluster.worker_nodes if raylet_of(node) == raylet]
    cluster.remove_node(lost, allow_graceful=False)
    assert finish(run) == (0, "")
    assert_same_end(folders.run, serial[1])
    log = (folders.run / "run.log").read_text(encoding="utf-8")
    assert "WARNING a worker died with the clients of nodes 10" in log
    assert "WARNING there is no new worker; 1 go on" in log


def raylet_of(node):
    (info,) = node.all_processes["raylet"]
    return info.process.pid


def test_an_address_without_a_cluster(serial, folders_of):
    folders = folders_of(serial[0])
    run = folders.simulate("--workers", "1", "--ray-address", "127.0.0.1:1")
    status, errors = finish(run)
    assert status == 2
    assert errors.startswith("error: cannot join the Ray cluster at '127.0.0.1:1'")
    assert errors.count("\n") == 1


ROUNDS = """
import json
import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, RecordDict
from grid_apps import to_all
from mest_fed.simulation.engine.executor import make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

executor = make_executor("grid_apps:app", 2)
grid = EngineGrid(make_nodes(130), executor, stream=True)

def play(rounds):
    found = set()
    for number in range(rounds):
        arrays = ArrayRecord({"w": Array(np.full(6000, number, np.float32))})
        messages = to_all(grid, RecordDict({"arrays": arrays}), "query.echo")
        for reply in grid.send_and_receive(messages):
            found.add(reply.content["who"]["pid"])
    return found

def used(pids):
    processes = [psutil.Process(), *map(psutil.Process, sorted(pids))]
    return [[p.memory_info().rss, p.num_fds()] for p in processes]

pids = play(50)
before = used(pids)
again = play(150)
print(json.dumps([before, used(pids), len(pids), again == pids]))
executor.close()
"""


@pytest.mark.soak
def test_memory_is_flat_over_200_rounds():
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    before, after, workers, same = json.loads(done.stdout)
    print(before, after)
    assert workers == 2
    assert same
    for (bytes_before, files_before), (bytes_after, files_after) in zip(before, after, strict=True):
        assert files_after <= files_before + 2
        assert bytes_after < bytes_before + 8e6
