"""Replies and their instructions; exchanges on a grid that behaves as Flower's does."""

import math

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from server_parts import (
    NODES,
    StubGrid,
    capability,
    error_to,
    evaluate_messages,
    named,
    strategy_of,
    train_messages,
)
from test_server_strategy import honest

from mest_fed.schema import FAILURE_CODES, FailureKind
from mest_fed.server import exchange, grids
from mest_fed.server.exchange import Awaited, DeviceGrid, absence_of
from mest_fed.server.modes import arrivals as messenger
from mest_fed.wire.records import content_bytes

A, B, C, D = NODES


def test_the_codes_are_flowers():
    named = {
        "LOAD_CLIENT_APP_EXCEPTION": FailureKind.CLIENT_ERROR,
        "CLIENT_APP_RAISED_EXCEPTION": FailureKind.CLIENT_ERROR,
        "MESSAGE_UNAVAILABLE": FailureKind.UPLOAD_LOST,
        "REPLY_MESSAGE_UNAVAILABLE": FailureKind.NO_REPLY,
        "NODE_UNAVAILABLE": FailureKind.AWAY,
        "CLIENT_APP_CRASHED": FailureKind.WORKER_DIED,
    }
    own = {code: kind for code, kind in FAILURE_CODES.items() if code < 1000}
    assert own == {getattr(ErrorCode, name): kind for name, kind in named.items()}


def message(node_id=A):
    return Message(RecordDict(), node_id, "train")


def of_superlink(instruction, code=ErrorCode.NODE_UNAVAILABLE):
    """Return the reply that the SuperLink writes in a device's place."""
    reply = Message(Error(code, "Node Unavailable"), reply_to=instruction)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


def test_an_instruction_is_answered_once():
    first, second = named(message(A)), named(message(B))
    awaited = Awaited([(first, "a"), (second, "b")])
    assert awaited.take(of_superlink(second)) == "b"
    assert awaited.take(error_to(second)) is None
    assert awaited.take(error_to(named(message(B)))) is None
    assert awaited.rest() == ["a"]


def test_messages_are_named_while_replies_are_read():
    sent = [message(A), message(B)]
    awaited = Awaited([(each, each.metadata.dst_node_id) for each in sent])
    assert awaited.names() == []
    assert awaited.take(error_to(named(sent[0]))) == A
    assert awaited.take(error_to(named(sent[1]))) == B


class FlowerGrid:
    """Instructions go to devices that report after so many looks; ids and errors are Flower's.

    ``looks`` is node id -> looks, or None for one that is away, or "gone" for one that has signed
    off, to which nothing can be sent.
    """

    def __init__(self, looks):
        self.looks, self.sent, self.pulled = looks, {}, []
        self.report = lambda instruction: error_to(instruction, "its own")

    def push_messages(self, messages):
        ids = []
        for each in messages:
            named(each)
            gone = self.looks[each.metadata.dst_node_id] == "gone"
            ids.append("" if gone else each.metadata.message_id)
            if not gone:
                self.sent[ids[-1]] = [each, self.looks[each.metadata.dst_node_id]]
        return ids

    def pull_messages(self, message_ids):
        self.pulled.append(list(message_ids))
        replies = []
        for name in self.pulled[-1]:
            each, looks = self.sent[name]
            if looks is None:
                replies.append(of_superlink(each))
            elif looks == 0:
                replies += [self.report(each)] * 2  # the second is one too many
            else:
                self.sent[name][1] -= 1
        return replies


@pytest.fixture
def clock(monkeypatch):
    class StepTime:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    made = StepTime()
    for module in (exchange, grids, messenger):
        monkeypatch.setattr(module, "time", made)
    return made


def exchanged(grid, nodes, timeout=None):
    """Return what came of an exchange, by node: an absence, or the device's own words."""
    sent = [message(node) for node in nodes]
    replies = list(DeviceGrid(grid).send_and_receive(sent, timeout=timeout))
    node_of = {each.metadata.message_id: each.metadata.dst_node_id for each in sent}
    found = [node_of[reply.metadata.reply_to_message_id] for reply in replies]
    assert sorted(found) == sorted(nodes), "one reply each"
    return {
        node: absence_of(reply) or reply.error.reason
        for node, reply in zip(found, replies, strict=True)
    }


def test_each_instruction_has_one_reply(clock):
    grid = FlowerGrid({A: 0, B: None, C: "gone", D: 3})
    assert exchanged(grid, NODES) == {
        A: "its own",
        B: FailureKind.WENT_AWAY,  # after it was sent, so that its bytes count
        C: FailureKind.AWAY,
        D: "its own",
    }
    assert clock.now == pytest.approx(1000 + 3 * grids.POLL_SECONDS)


def test_all_may_have_signed_off(clock):
    grid = FlowerGrid(dict.fromkeys(NODES, "gone"))
    assert set(exchanged(grid, NODES).values()) == {FailureKind.AWAY}
    assert grid.pulled == []


def test_a_deadline_ends_an_exchange(clock):
    assert exchanged(FlowerGrid({A: 1, B: math.inf}), (A, B), timeout=5.0) == {
        A: "its own",
        B: FailureKind.NO_REPLY,
    }
    assert clock.now == pytest.approx(1005)


def test_an_empty_exchange_asks_nothing(clock):
    grid = FlowerGrid({})
    assert list(DeviceGrid(grid).send_and_receive([])) == []
    assert grid.pulled == []


def test_durations_are_those_of_training(clock):
    grid = DeviceGrid(FlowerGrid({A: 10, B: None}))
    list(grid.send_and_receive([message(A), message(B)]))
    assert grid.train_seconds()[A] == pytest.approx(1.0)
    assert grid.durations[A].start == 1000.0


def stub():
    return StubGrid({node_id: capability(p) for p, node_id in enumerate(NODES)})


@pytest.mark.parametrize("code", [3, 4, 5])
@pytest.mark.parametrize("mutation", ["server", "client"])
def test_a_round_goes_on_without_a_device_that_went_away(code, mutation):
    period = {"method": "mest-em", "mutation": mutation, "period": 0.125}
    strategy = strategy_of(sparsity=period)
    messages = train_messages(strategy, stub())
    before = strategy.model.state().dense
    good = honest(strategy, messages[A]), honest(strategy, messages[B])
    lost = of_superlink(messages[C], code)
    strategy.aggregate_train(1, [good[0], lost, good[1], good[0], lost, of_superlink(message())])
    assert [(o.partition, o.failure) for o in strategy.record.clients] == [
        (0, None),
        (1, None),
        (2, FAILURE_CODES[code]),
        (3, FailureKind.NO_REPLY),
    ]
    for name, values in before.items():
        assert strategy.model.dense[name] == pytest.approx(values + 0.5, abs=1e-5)


def test_an_update_of_the_round_before_is_dropped():
    strategy = strategy_of()
    late = honest(strategy, train_messages(strategy, stub())[A], amount=100.0)
    strategy.aggregate_train(1, [])
    messages = train_messages(strategy, stub(), 2)
    before = strategy.model.state().dense
    strategy.aggregate_train(2, [late, honest(strategy, messages[B])])
    assert strategy.record.count("ok") == 1
    for name, values in before.items():
        assert strategy.model.dense[name] == pytest.approx(values + 0.5, abs=1e-5)


def test_an_evaluation_goes_on_without_a_device_that_went_away():
    strategy = strategy_of()
    train_messages(strategy, stub(), 2)
    strategy.aggregate_train(2, [])
    messages = evaluate_messages(strategy, stub(), 2)
    numbers = MetricRecord({"num-examples": 4, "loss-sum": 1.0, "correct": 3})
    good = Message(RecordDict({"metrics": numbers}), reply_to=messages[A])
    lost = of_superlink(messages[B])
    metrics = strategy.aggregate_evaluate(2, [lost, good, good, of_superlink(message())])
    assert metrics["mean"] == 0.75
    assert strategy.record.bytes_up == content_bytes(good.content)


@pytest.mark.parametrize("mode", ["buffered", "semi-sync", "sync"])
def test_rounds_of_arrivals_go_on_without_a_device_that_went_away(clock, mode):
    server = {"mode": mode, "concurrency": 4, "buffer": 2, "period": 5.0, "clients_per_round": 2}
    over = {"over_selection": 2.0} if mode == "sync" else {}
    strategy = strategy_of(server=server | over)
    grid = FlowerGrid({A: None, B: "gone", C: 20, D: 2})
    grid.report = lambda each: honest(strategy, each)
    grid.get_node_ids, grid.send_and_receive = stub().get_node_ids, stub().send_and_receive
    strategy.configure_train(1, None, None, grid)
    strategy.aggregate_train(1, [])
    found = {o.node_id: o.failure for o in strategy.record.clients}
    assert found == {
        A: FailureKind.AWAY,
        B: FailureKind.AWAY,
        C: None,
        D: None,
    }


def test_a_partition_is_not_asked_again_while_its_node_of_before_may_answer(clock):
    strategy = strategy_of(server={"mode": "buffered", "concurrency": 4, "buffer": 1})
    fleet = StubGrid({A: capability(0), B: capability(1)})
    grid = FlowerGrid({A: 5, B: 2, C: 2})
    grid.report = lambda each: honest(strategy, each)
    grid.get_node_ids, grid.send_and_receive = fleet.get_node_ids, fleet.send_and_receive
    rounds = []
    for number in range(1, 5):
        if number == 2:  # partition 0 has another node, but A's update is still on its way
            del fleet.capabilities[A]
            fleet.capabilities[C] = capability(0, examples=30)
        strategy.clients.known_mask = {}
        strategy.configure_train(number, None, None, grid)
        strategy.aggregate_train(number, [])
        assert {o.status for o in strategy.record.clients} == {"ok"}
        rounds.append([o.node_id for o in strategy.record.clients])
    assert not any(A in nodes and C in nodes for nodes in rounds)
    assert sum(A in nodes for nodes in rounds) == 1
    assert C in rounds[-1]


@pytest.mark.parametrize("mode", ["sync", "semi-sync"])
def test_who_did_not_train_is_not_blamed_for_an_evaluation(clock, caplog, mode):
    caplog.set_level("WARNING", "mest_fed.server")
    strategy = strategy_of(server={"mode": mode, "concurrency": 4, "period": 5.0})
    grid = FlowerGrid(dict.fromkeys(NODES, None))
    grid.get_node_ids, grid.send_and_receive = stub().get_node_ids, stub().send_and_receive
    strategy.configure_train(1, None, None, grid)
    strategy.aggregate_train(1, [])
    assert strategy.record.without_reply == 4
    assert list(strategy.configure_evaluate(1, None, None, grid)) == []
    strategy.aggregate_evaluate(1, [])
    assert "evaluation" not in caplog.text
