"""The clients: who takes part, in what order, and who is sampled."""

import math
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from server_parts import StubGrid, capability, named

import mest_fed.server.client_registry
from mest_fed.errors import MestFedError
from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.exchange import DeviceGrid
from mest_fed.server.grids import RunGrid, others_may_come

DENSITIES = (0.2, 0.1, 0.05, 0.025)
#: Node ids as Flower draws them, against the order of the partitions.
IDS = {7001: 2, 42: 0, 999: 3, 5: 1}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(mest_fed.server.client_registry, "sleep", lambda seconds: None)


def registry_of(capabilities, min_nodes=1):
    clients = ClientRegistry(DENSITIES)
    clients.refresh(StubGrid(capabilities), min_nodes)
    return clients


def honest(ids):
    return {node_id: capability(partition) for node_id, partition in ids.items()}


def test_a_node_is_what_it_answers():
    node = registry_of({8: capability(3, density=0.05, device="jetson-nano", held_out=0)}).nodes[8]
    assert (node.node_id, node.partition, node.device, node.density) == (8, 3, "jetson-nano", 0.05)
    assert (node.budget, node.micro_batch, node.predicted_peak) == (10**9, 32, 10**6)
    assert (node.examples, node.held_out) == (40, 0)


def test_samples_are_ordered_by_partition():
    sample = registry_of(honest(IDS)).sample(4, 1, 1, "cohort")
    assert [node.partition for node in sample] == [0, 1, 2, 3]


def test_samples_do_not_depend_on_node_ids():
    partitions = range(20)
    one = registry_of(honest({100 + p: p for p in partitions}))
    other = registry_of(honest({(7 * p) % 20: p for p in reversed(partitions)}))
    for number in range(5):
        drawn = [
            [node.partition for node in clients.sample(6, 3, number, "cohort")]
            for clients in (one, other)
        ]
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) == 6


def test_samples_follow_the_path():
    clients = registry_of(honest({p: p for p in range(20)}))

    def drawn(*path):
        return [node.partition for node in clients.sample(6, *path)]

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
    assert len(registry_of(honest(IDS)).sample(50, 1, 1, "cohort")) == 4


@pytest.mark.parametrize(
    "report",
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
def test_a_node_with_a_wrong_answer_is_left_out(report):
    grid = StubGrid({1: report, 2: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    assert list(clients.nodes) == [2]
    clients.refresh(grid, 1)
    assert grid.asked == [1, 2]  # nobody is asked twice


def test_when_all_refuse_the_run_ends():
    with pytest.raises(MestFedError, match=r"every node refused to take part: no data$"):
        registry_of({1: "no data", 2: "no data"})
    with pytest.raises(MestFedError, match="every node refused to take part: see the log"):
        registry_of({1: "no data", 2: "no memory"})


class OpenGrid(RunGrid):
    """A grid of the same messages where another node comes once all have refused."""

    others_may_come = True

    def __init__(self, capabilities, newcomer):
        self._stub, self._newcomer = StubGrid(capabilities), newcomer

    def get_node_ids(self):
        found = self._stub.get_node_ids()
        if self._stub.asked:
            self._stub.capabilities |= self._newcomer
        return found

    def send_and_receive(self, messages, *, timeout=None):
        return self._stub.send_and_receive(messages, timeout=timeout)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        return []


def test_where_others_may_come_the_run_waits_for_them(caplog):
    caplog.set_level("INFO", "mest_fed.server")
    clients = ClientRegistry(DENSITIES)
    grid = OpenGrid({1: "fits no plan"}, {2: capability(0)})
    assert others_may_come(DeviceGrid(grid))
    clients.refresh(grid, 1)
    assert list(clients.nodes) == [2]
    assert "waiting for nodes: 0 of 1; 1 refused to take part" in caplog.messages


def test_nodes_that_refuse_for_one_reason_are_one_line(caplog):
    caplog.set_level("WARNING", "mest_fed.server")
    registry_of({1: "no data", 2: "no data", 3: "no memory", 4: capability(0)})
    assert [record.getMessage() for record in caplog.records] == [
        "2 nodes (one is 1) do not take part: no data",
        "node 3 does not take part: no memory",
    ]


def test_who_joins_is_said_one_by_one_or_how_many_did(caplog):
    caplog.set_level("INFO", "mest_fed.server")
    grid = DeviceStub({7: capability(0)})
    grid.names = {7: "attic"}
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    assert [it for it in caplog.messages if "attic" in it] == [
        "node attic takes part: rpi-4, partition 0, 10 examples, 1 GB to train in"
    ]
    caplog.clear()
    registry_of({number: capability(number) for number in range(5)})
    assert "5 nodes take part" in caplog.messages
    assert not any("takes part" in it for it in caplog.messages)


def test_a_node_is_called_what_its_grid_calls_it(caplog):
    caplog.set_level("WARNING", "mest_fed.server")
    grid = DeviceStub({1: "no data", 2: capability(0), 3: capability(0), 4: capability(1)})
    grid.names = {1: "attic", 2: "cellar", 3: "shed"}
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    assert [clients.nodes[each].label for each in (2, 4)] == ["cellar", "4 (partition 1)"]
    assert [record.getMessage() for record in caplog.records] == [
        "node attic does not take part: no data",
        "node shed does not take part: it claims partition 0, which node cellar holds",
    ]


def test_the_wait_for_the_first_nodes_is_known_and_no_later_one(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(mest_fed.server.client_registry.time, "monotonic", lambda: clock.now)
    grid = StubGrid({})

    def later(seconds):
        clock.now += 30.0
        grid.capabilities[len(grid.capabilities)] = capability(len(grid.capabilities))

    monkeypatch.setattr(mest_fed.server.client_registry, "sleep", later)
    clients = ClientRegistry(DENSITIES)
    for wanted in (2, 3):
        clients.refresh(grid, wanted)
        assert clients.first_wait == 60.0


def test_nodes_come_and_go():
    grid = StubGrid(honest(IDS))
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    del grid.capabilities[42]
    grid.capabilities[11] = capability(9)
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {7001, 999, 5, 11}
    assert grid.asked == [*sorted(IDS), 11]


def test_it_waits_for_enough_nodes(monkeypatch):
    grid = StubGrid({1: capability(0)})
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        grid.capabilities[1 + len(waits)] = capability(len(waits))

    monkeypatch.setattr(mest_fed.server.client_registry, "sleep", sleep)
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 3)
    assert len(waits) == 2
    assert len(clients.nodes) == 3


def test_a_wait_in_a_later_round_is_said_again(monkeypatch, caplog):
    caplog.set_level("INFO", "mest_fed.server")
    grid = StubGrid({1: capability(0), 2: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 2)
    lost, now = grid.capabilities.pop(2), [0.0]

    def sleep(seconds):
        now[0] += 25.0
        if now[0] > 100:
            grid.capabilities[2] = lost

    module = mest_fed.server.client_registry
    monkeypatch.setattr(module, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caplog.clear()
    clients.refresh(grid, 2)
    line = "waiting for nodes: 1 of 2; the run goes on when they are there"
    waiting = [it for it in caplog.messages if it.startswith("waiting")]
    assert waiting == [line, line]  # at 0 and at 75 s


def test_it_waits_for_the_first_node(monkeypatch):
    grid = StubGrid({})
    monkeypatch.setattr(
        mest_fed.server.client_registry,
        "sleep",
        lambda seconds: grid.capabilities.update({4: capability(0)}),
    )
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    assert [node.partition for node in clients.nodes.values()] == [0]


class NumberedGrid(StubGrid):
    """A fleet of so many nodes whose ids follow the partitions; most of them never come to be."""

    def __init__(self, total, refuse=()):
        super().__init__({})
        self.ids, self.refuse = range(1000, 1000 + total), set(refuse)

    def get_node_ids(self):
        return self.ids

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            node_id = message.metadata.dst_node_id
            report = "no data" if node_id in self.refuse else capability(node_id - 1000)
            self.capabilities[node_id] = report
            yield from super().send_and_receive([message])


def numbered(total, **options):
    clients, grid = ClientRegistry(DENSITIES), NumberedGrid(total, **options)
    clients.refresh(grid, 1)
    return clients, grid


def drawn(clients, count, *path, **options):
    return [node.partition for node in clients.sample(count, *path, **options)]


def test_of_a_numbered_fleet_only_drawn_nodes_are_asked():
    clients, grid = numbered(1_000_000)
    first = drawn(clients, 100, 1, 1, "cohort")
    assert len(set(first)) == 100
    assert sorted(grid.asked) == [1000 + partition for partition in first]
    assert drawn(clients, 100, 1, 1, "cohort") == first
    assert len(grid.asked) == 100  # they are known now
    second = drawn(clients, 100, 1, 2, "cohort")
    assert len(set(first) & set(second)) < 50
    assert len(grid.asked) == 200


def test_a_numbered_fleet_gives_the_same_draws_as_any_other():
    clients, _ = numbered(20)
    other = registry_of(honest({(7 * p) % 20: p for p in range(20)}))
    for number in range(5):
        assert drawn(clients, 6, 3, number, "c") == drawn(other, 6, 3, number, "c")


def test_others_are_drawn_for_those_that_refuse():
    everybody, _ = numbered(50)
    wanted = drawn(everybody, 8, 1, 1, "cohort")
    clients, grid = numbered(50, refuse={1000 + wanted[0], 1000 + wanted[5]})
    chosen = drawn(clients, 8, 1, 1, "cohort")
    assert len(set(chosen)) == 8
    assert set(wanted) - set(chosen) == {wanted[0], wanted[5]}
    again, _ = numbered(50, refuse=grid.refuse)
    assert drawn(again, 8, 1, 1, "cohort") == chosen
    asked = len(grid.asked)
    assert drawn(clients, 8, 1, 1, "cohort") == chosen
    assert len(grid.asked) == asked


def test_a_small_numbered_fleet_gives_what_it_has():
    clients, _ = numbered(5, refuse={1001, 1004})
    assert drawn(clients, 4, 1, 1, "cohort") == [0, 2, 3]


def test_not_all_of_a_numbered_fleet_is_asked_when_all_refuse():
    clients, grid = numbered(100_000, refuse=range(1000, 101_000))
    with pytest.raises(MestFedError, match="all 44 nodes that were drawn refused"):
        clients.sample(4, 1, 1, "cohort")
    assert len(grid.asked) == 44


@pytest.mark.parametrize("ids", ["numbered", "any"])
def test_busy_nodes_are_passed_over(ids):
    clients = (
        numbered(20)[0]
        if ids == "numbered"
        else registry_of(honest({p + 1000: p for p in range(20)}))
    )
    everybody = drawn(clients, 20, 1, 1, "cohort")
    assert everybody == list(range(20))
    busy = {1003, 1007}
    assert drawn(clients, 20, 1, 1, "cohort", without=busy) == [
        p for p in everybody if p not in (3, 7)
    ]
    assert drawn(clients, 3, 1, 1, "cohort", without=range(1000, 1020)) == []


def test_the_others_may_be_busy_when_all_refuse_that_are_drawn():
    clients, _ = numbered(4, refuse={1001, 1002})
    assert drawn(clients, 2, 1, 1, "cohort", without={1000, 1003}) == []


def test_a_numbered_fleet_is_remembered_in_part(monkeypatch):
    monkeypatch.setattr(mest_fed.server.client_registry, "REMEMBERED", 30)
    clients, grid = numbered(1000, refuse=range(1000, 1500))
    clients.known_mask = dict.fromkeys(range(1500, 1600), b"mask")
    before = [drawn(clients, 20, 1, number, "cohort") for number in range(8)]
    assert len(clients.nodes) == 30
    assert list(clients.known_mask) == list(range(1570, 1600))
    assert set(before[-1]) <= {node.partition for node in clients.nodes.values()}
    asked = len(grid.asked)
    assert [drawn(clients, 20, 1, number, "cohort") for number in range(8)] == before
    assert len(grid.asked) > asked  # who was forgotten is asked again


def test_a_cohort_may_be_larger_than_what_is_remembered(monkeypatch):
    monkeypatch.setattr(mest_fed.server.client_registry, "REMEMBERED", 3)
    clients, _ = numbered(100)
    assert len(drawn(clients, 40, 1, 1, "cohort")) == 40


def test_it_waits_for_enough_numbered_nodes(monkeypatch):
    clients, grid = ClientRegistry(DENSITIES), NumberedGrid(2)
    monkeypatch.setattr(
        mest_fed.server.client_registry, "sleep", lambda _: setattr(grid, "ids", range(1000, 1004))
    )
    clients.refresh(grid, 4)
    assert drawn(clients, 9, 1, 1, "cohort") == [0, 1, 2, 3]


def test_a_partition_is_of_one_node(caplog):
    caplog.set_level("WARNING", "mest_fed.server")
    grid = StubGrid({1: capability(0), 2: capability(0), 3: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 2)
    clients.refresh(grid, 2)
    assert set(clients.nodes) == {1, 3}
    assert [node.partition for node in clients.sample(9, 1, 1, "cohort")] == [0, 1]
    claims = [record for record in caplog.records if "claims partition 0" in record.message]
    assert len(claims) == 1, "said once"
    assert "node 2" in claims[0].message
    assert "which node 1 holds" in claims[0].message
    assert grid.asked == [1, 2, 3]


def test_who_waits_for_a_partition_has_it_once_its_holder_is_away():
    grid = StubGrid({1: capability(0), 2: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    grid.capabilities[3] = capability(0)  # node 1 was killed and began anew; it seems to be there
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1, 2}
    del grid.capabilities[1]
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {2, 3}
    grid.capabilities[1] = capability(0)  # it was only paused
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {2, 3}
    assert grid.asked == [1, 2, 3, 1]


def test_doubles_do_not_make_a_run_begin(monkeypatch):
    grid = StubGrid({1: capability(0), 2: capability(0)})
    monkeypatch.setattr(
        mest_fed.server.client_registry,
        "sleep",
        lambda seconds: grid.capabilities.update({4: capability(1)}),
    )
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 2)
    assert set(clients.nodes) == {1, 4}


class DeviceStub(StubGrid):
    """Knows since when nodes are there; some report late, and some go away while they are asked.

    ``silent`` nodes report once they are no longer in the set; ``away`` nodes have gone.
    """

    def __init__(self, capabilities):
        super().__init__(capabilities)
        self.since = dict.fromkeys(capabilities, "morning")
        self.silent, self.away, self.timeouts = set(), set(), []
        self.names = {}
        self._late = {}

    def get_nodes(self):
        return [
            SimpleNamespace(
                node_id=i,
                last_activated_at=self.since.get(i, "morning"),
                name=self.names.get(i, ""),
            )
            for i in self.capabilities
        ]

    def send_and_receive(self, messages, *, timeout=None):
        self.timeouts.append(timeout)
        for message in messages:
            node_id = message.metadata.dst_node_id
            if node_id in self.silent | self.away:
                self._late[named(message).metadata.message_id] = message
                code = 5 if node_id in self.away else 4
                yield Message(Error(code, "no reply"), reply_to=message)
            else:
                yield from super().send_and_receive([message])

    def pull_messages(self, message_ids):
        for name in message_ids:
            node_id = self._late[name].metadata.dst_node_id
            if node_id not in self.silent:
                report = RecordDict({"capability": self.capabilities[node_id]})
                yield Message(report, reply_to=self._late[name])


def test_who_began_anew_is_asked_again_and_holds_no_mask():
    grid = DeviceStub({1: capability(0), 2: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 2)
    clients.known_mask = {1: b"mask", 2: b"mask"}
    grid.since[1], grid.capabilities[1] = "noon", capability(3)
    clients.refresh(grid, 2)
    assert grid.asked == [1, 2, 1]
    assert {i: node.partition for i, node in clients.nodes.items()} == {1: 3, 2: 1}
    assert clients.known_mask == {2: b"mask"}


def test_who_refused_is_asked_again_when_it_began_anew():
    grid = DeviceStub({1: "no data", 2: capability(1)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {2}
    grid.since[1], grid.capabilities[1] = "noon", capability(0)
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1, 2}
    assert grid.asked == [1, 2, 1]


def test_no_round_waits_for_a_newcomer_and_a_late_answer_counts():
    grid = DeviceStub({1: capability(0)})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    grid.capabilities[2] = capability(1)
    grid.silent.add(2)
    clients.refresh(grid, 1)
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1}
    grid.silent.clear()
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1, 2}
    assert grid.timeouts == [
        mest_fed.server.client_registry.QUERY_SECONDS,
        0.0,
    ]  # it was asked once


def test_who_goes_away_while_it_is_asked_has_not_refused():
    grid = DeviceStub({1: capability(0), 2: capability(1)})
    grid.away.add(2)
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1}
    grid.away.clear()
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1, 2}


def test_when_the_others_are_away_a_refusal_does_not_end_the_run(monkeypatch):
    grid = DeviceStub({1: capability(0), 2: "no data"})
    clients = ClientRegistry(DENSITIES)
    clients.refresh(grid, 1)
    del grid.capabilities[1]
    monkeypatch.setattr(
        mest_fed.server.client_registry,
        "sleep",
        lambda seconds: grid.capabilities.update({1: capability(0)}),
    )
    clients.refresh(grid, 1)
    assert set(clients.nodes) == {1}
