"""The roster: who takes part, in what order, and who is sampled."""

import math

import pytest
from flwr.app import ConfigRecord, MetricRecord
from server_parts import StubGrid, capability

import server.roster
from mest_fed.errors import MestFedError
from server.roster import Roster

DENSITIES = (0.2, 0.1, 0.05, 0.025)
#: Node ids as Flower draws them, against the order of the partitions.
IDS = {7001: 2, 42: 0, 999: 3, 5: 1}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(server.roster, "sleep", lambda seconds: None)


def roster_of(capabilities, min_nodes=1):
    roster = Roster(DENSITIES)
    roster.refresh(StubGrid(capabilities), min_nodes)
    return roster


def honest(ids):
    return {node_id: capability(partition) for node_id, partition in ids.items()}


def test_a_node_is_what_it_answers():
    node = roster_of({8: capability(3, density=0.05, device="jetson-nano", held_out=0)}).nodes[8]
    assert (node.node_id, node.partition, node.device, node.density) == (8, 3, "jetson-nano", 0.05)
    assert (node.budget, node.micro_batch, node.predicted_peak) == (10**9, 32, 10**6)
    assert (node.examples, node.held_out) == (40, 0)


def test_samples_are_ordered_by_partition():
    sample = roster_of(honest(IDS)).sample(4, 1, 1, "cohort")
    assert [node.partition for node in sample] == [0, 1, 2, 3]


def test_samples_do_not_depend_on_node_ids():
    partitions = range(20)
    one = roster_of(honest({100 + p: p for p in partitions}))
    other = roster_of(honest({(7 * p) % 20: p for p in reversed(partitions)}))
    for number in range(5):
        drawn = [
            [node.partition for node in roster.sample(6, 3, number, "cohort")]
            for roster in (one, other)
        ]
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) == 6


def test_samples_follow_the_path():
    roster = roster_of(honest({p: p for p in range(20)}))

    def drawn(*path):
        return [node.partition for node in roster.sample(6, *path)]

    assert drawn(3, 1, "cohort") == drawn(3, 1, "cohort")
    assert (
        len(
            {
                tuple(drawn(*p))
                for p in [(3, 1, "cohort"), (4, 1, "cohort"), (3, 2, "cohort"), (3, 1, "e")]
            }
        )
        == 4
    )


def test_a_sample_is_never_larger_than_the_fleet():
    assert len(roster_of(honest(IDS)).sample(50, 1, 1, "cohort")) == 4


@pytest.mark.parametrize(
    "answer",
    [
        "out of memory",  # an error reply
        ConfigRecord(),
        MetricRecord({"partition": 0}),
        capability(0, density=None),
        capability(0, density=0.15),
        capability(0, density=0.4),
        capability(0, density=math.nan),
        capability(0, density="dense"),
        capability(0, examples=0),
        capability(0, examples=-5),
        capability(0, examples=math.inf),
        capability(0, examples=math.nan),
        capability(0, budget=[1, 2]),
        capability(0, partition="first"),
        capability(0, micro_batch="eight"),
    ],
    ids=str,
)
def test_a_node_with_a_wrong_answer_is_left_out(answer):
    grid = StubGrid({1: answer, 2: capability(1)})
    roster = Roster(DENSITIES)
    roster.refresh(grid, 1)
    assert list(roster.nodes) == [2]
    roster.refresh(grid, 1)
    assert grid.asked == [1, 2]  # nobody is asked twice


def test_when_all_refuse_the_run_ends():
    with pytest.raises(MestFedError, match="every node refused"):
        roster_of({1: "no data", 2: "no data"})


def test_nodes_come_and_go():
    grid = StubGrid(honest(IDS))
    roster = Roster(DENSITIES)
    roster.refresh(grid, 1)
    del grid.capabilities[42]
    grid.capabilities[11] = capability(9)
    roster.refresh(grid, 1)
    assert set(roster.nodes) == {7001, 999, 5, 11}
    assert grid.asked == [*sorted(IDS), 11]


def test_it_waits_for_enough_nodes(monkeypatch):
    grid = StubGrid({1: capability(0)})
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        grid.capabilities[1 + len(waits)] = capability(len(waits))

    monkeypatch.setattr(server.roster, "sleep", sleep)
    roster = Roster(DENSITIES)
    roster.refresh(grid, 3)
    assert len(waits) == 2
    assert len(roster.nodes) == 3


def test_it_waits_for_the_first_node(monkeypatch):
    grid = StubGrid({})
    monkeypatch.setattr(
        server.roster, "sleep", lambda seconds: grid.capabilities.update({4: capability(0)})
    )
    roster = Roster(DENSITIES)
    roster.refresh(grid, 1)
    assert list(roster.by_partition()) == [0]
