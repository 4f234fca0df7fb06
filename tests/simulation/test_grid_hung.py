"""Clients that hang, time that is over, and exchanges side by side over the same workers."""

import gc
import time
import warnings

import pytest
import ray
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from grid_apps import facts, model, to_all

from mest_fed.simulation.engine.executor import SerialExecutor, make_executor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.engine.interfaces import make_nodes

pytestmark = [pytest.mark.soak, pytest.mark.ray]

#: A client that hangs sleeps for a minute.
MOST_SECONDS = 50
NODES = 9
#: Seconds; longer than the time that an exchange below has.
PATIENCE = 3.0


@pytest.fixture(scope="module")
def executor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    executor = make_executor("grid_apps:app", 2, patience=PATIENCE)
    yield executor
    executor.close()
    ray.shutdown()
    gc.collect()


def order(hangs):
    """Return a message's content: one partition hangs; -1: none does."""
    return RecordDict({"config": ConfigRecord({"hangs": hangs})})


def seen(partitions):
    return {
        1000 + partition: RecordDict({"seen": MetricRecord({"partition": partition})})
        for partition in partitions
    }


def test_a_client_that_hangs_fails_alone(executor, caplog):
    grid = EngineGrid(make_nodes(NODES), executor)
    # Once clients are known to be quick, all of them travel in one chunk.
    list(grid.send_and_receive(to_all(grid, order(-1), "query.hang")))
    fresh = EngineGrid(make_nodes(NODES), executor)
    started = time.monotonic()
    replies = list(fresh.send_and_receive(to_all(fresh, order(4), "query.hang")))
    assert time.monotonic() - started < MOST_SECONDS
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1000, 1009))
    failed = {r.metadata.src_node_id: r.error for r in replies if r.has_error()}
    assert list(failed) == [1004]
    assert failed[1004].code == 8
    assert failed[1004].reason == "the worker process gave no reply in time while this client ran"
    assert fresh.states == seen({*range(NODES)} - {4})
    assert "clients of nodes 1004; it gives an error" in caplog.text
    again = list(fresh.send_and_receive(to_all(fresh, order(-1), "query.hang")))
    assert not any(reply.has_error() for reply in again)
    assert fresh.states == seen(range(NODES))


def test_when_time_is_over_replies_that_came_are_there(executor):
    grid = EngineGrid(make_nodes(NODES), executor)
    started = time.monotonic()
    # Of this kind none has run yet: each travels alone. The first one hangs.
    replies = list(grid.send_and_receive(to_all(grid, order(0), "query.stall"), timeout=2.0))
    assert time.monotonic() - started < MOST_SECONDS
    came = [reply.metadata.src_node_id - 1000 for reply in replies]
    # Lost with it at most: the one that waited behind it.
    assert len(came) >= NODES - 2
    assert came == sorted(came)
    assert 0 not in came
    assert grid.states == seen(came)
    again = list(grid.send_and_receive(to_all(grid, order(-1), "query.stall")))
    assert len(again) == NODES
    assert grid.states == seen(range(NODES))


def test_no_time_means_no_reply(executor):
    for each in (executor, SerialExecutor("grid_apps:app")):
        grid = EngineGrid(make_nodes(NODES), each)
        assert list(grid.send_and_receive(to_all(grid, order(-1), "query.stall"), timeout=0)) == []
        assert grid.states == {}


def play(executor):
    """Begin instructions that occupy all workers, and exchange others before these are read."""
    grid = EngineGrid(make_nodes(40), executor)
    pushed = grid.push_messages(to_all(grid, model(), "train")[:30])
    between = facts(grid.send_and_receive(to_all(grid, model(), "evaluate")[30:]))
    assert len(between) == 10
    pulled: list[Message] = []
    while len(pulled) < 30:
        pulled += grid.pull_messages(pushed)
    return between, facts(pulled), grid.states


def test_exchanges_side_by_side_share_the_workers(executor):
    assert play(executor) == play(SerialExecutor("grid_apps:app"))
