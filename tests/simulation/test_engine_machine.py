"""How many workers a machine has room for, and which part of a GPU each gets."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mest_fed.simulation.engine import machine
from mest_fed.simulation.engine.machine import (
    BASE_BYTES,
    WORKER_BYTES,
    cores_and_gpus,
    default_workers,
    free_memory,
    gpu_share,
)

GB = 1 << 30


@pytest.fixture
def room(monkeypatch):
    """Set cores, free memory of the machine, and the limit of this process with its usage."""

    def room(cores=8, available=64 * GB, limit=None, used=0):
        monkeypatch.setattr(machine, "available_cores", lambda _: cores)
        monkeypatch.setattr(machine, "limit_of_process", lambda _: limit)
        monkeypatch.setattr(machine, "usage", lambda _: used)
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)

    return room


def test_memory_is_what_the_limit_leaves(room):
    room(available=64 * GB, limit=2 * GB, used=GB // 2)
    assert free_memory() == 2 * GB - GB // 2
    room(available=GB, limit=2 * GB, used=GB // 2)
    assert free_memory() == GB
    room(available=GB, limit=2 * GB, used=3 * GB)
    assert free_memory() == 0
    room(available=5 * GB)
    assert free_memory() == 5 * GB


@pytest.mark.parametrize(
    ("cores", "memory", "workers"),
    [
        (8, BASE_BYTES + 100 * WORKER_BYTES, 8),
        (8, BASE_BYTES + 3 * WORKER_BYTES + 5, 3),
        (8, BASE_BYTES, 1),
        (8, 0, 1),
        (1, 64 * GB, 1),
    ],
)
def test_a_worker_for_each_core_that_has_memory(room, cores, memory, workers):
    room(cores=cores, available=64 * GB, limit=memory)
    assert default_workers() == workers


@pytest.mark.parametrize(
    ("workers", "machines", "share"),
    [
        (2, [(8, 0)], 0.0),
        (2, [(8, 1)], 0.5),
        (2, [(8, 2)], 1.0),
        (1, [(8, 4)], 1.0),
        (3, [(8, 2)], 0.5),
        (5, [(8, 2)], 0.3333),
        (8, [(1, 4), (16, 1)], 0.1428),  # the first has a core for one of them alone
        (12, [(8, 2), (8, 0)], 0.0),  # four would have no GPU, and would never start
        (4, [(4, 2), (0, 8)], 0.5),
    ],
)
def test_the_part_of_a_gpu(workers, machines, share):
    assert gpu_share(workers, machines) == share


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 32), st.integers(0, 8)), max_size=4))
def test_all_workers_find_a_place(workers, machines):
    share = gpu_share(workers, machines)
    places = [min(cores, gpus * int(1 / share)) for cores, gpus in machines] if share else [workers]
    assert sum(places) >= workers
    if share == 0.0:
        assert sum(cores for cores, gpus in machines if gpus) < workers


def test_a_lost_machine_has_nothing():
    found = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 5.0}}
    assert cores_and_gpus(found) == (4, 1)
    assert cores_and_gpus(found | {"Alive": False}) == (0, 0)
