"""Several grids as one: routing, ids that collide, a round of both kinds in one process."""

import threading
import time
from contextlib import closing
from itertools import count

import numpy as np
import pytest
import torch
from flower_processes import free_ports
from flwr.app import Message, RecordDict
from test_deployment_folder import rows
from tiny_run import tiny_config

from mest_fed.config import from_flat, to_flat
from mest_fed.errors import InputError, MestFedError, RefusedError
from mest_fed.link.messages import NodeDescription
from mest_fed.link.node.runner import NodeRunner, NodeSetup
from mest_fed.link.node.store import NodeFolder
from mest_fed.link.node.transport import NodeLink, Patience
from mest_fed.link.server import joint_grid
from mest_fed.link.server.joint_grid import JointGrid
from mest_fed.link.server.opening import KEYS, LinkSettings, joined_with_link
from mest_fed.schema import FailureKind
from mest_fed.server import deployed, grids
from mest_fed.server.app import build_server_app
from mest_fed.server.exchange import DeviceGrid, absence_of
from mest_fed.server.flower_internals import (
    claim_identity,
    empty_run,
    error_reply,
    run_server_app,
    set_message_id,
)
from mest_fed.simulation.engine.executor import SerialExecutor
from mest_fed.simulation.engine.grid import EngineGrid
from mest_fed.simulation.fleet import Fleet
from mest_fed.task import Task


class FakeGrid:
    """Nodes reply after so many looks; one of ``gone`` cannot be sent anything."""

    def __init__(self, looks, name="m", gone=()):
        self.looks, self.name, self.gone = dict(looks), name, gone
        self.run = empty_run(5)
        self.sent, self.pulled, self.numbers = {}, [], count(1)

    def set_run(self, run):
        self.run = run

    def get_node_ids(self):
        return list(self.looks)

    def push_messages(self, messages):
        return [self._push(each) for each in messages]

    def _push(self, each):
        set_message_id(each, f"{self.name}{next(self.numbers)}")
        if each.metadata.dst_node_id in self.gone:
            return None
        self.sent[each.metadata.message_id] = [each, self.looks[each.metadata.dst_node_id]]
        return each.metadata.message_id

    def pull_messages(self, names):
        self.pulled.append(list(names))
        replies = []
        for name in names:
            self.sent[name][1] -= 1
            if self.sent[name][1] < 0:
                replies.append(error_reply(self.sent.pop(name)[0], 2, self.name))
        return replies


class Talkative(FakeGrid):
    """Knows since when its nodes are there."""

    def get_nodes(self):
        return [joint_grid.LinkNode(node_id, f"since {node_id}") for node_id in self.looks]


@pytest.fixture(autouse=True)
def _identity():
    claim_identity(5)


@pytest.fixture
def clock(monkeypatch):
    class StepTime:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    made = StepTime()
    for module in (joint_grid, grids):
        monkeypatch.setattr(module, "time", made)
    return made


def to(*node_ids):
    return [Message(RecordDict(), node_id, "train") for node_id in node_ids]


def test_messages_and_replies_find_their_grids(clock):
    one, two = FakeGrid({1: 0, 3: 2}, "a"), Talkative({2: 1}, "b")
    joint = JointGrid([one, two])
    assert joint.get_node_ids() == [1, 3, 2]
    assert [(each.node_id, each.last_activated_at) for each in joint.get_nodes()] == [
        (1, ""),
        (3, ""),
        (2, "since 2"),
    ]
    messages = to(2, 1, 3)
    replies = list(joint.send_and_receive(messages))
    assert [each.metadata.message_id for each in messages] == ["b1", "a1", "a2"]
    # As they come: 1 at once, 2 and 3 after one and two looks.
    assert [each.metadata.reply_to_message_id for each in replies] == ["a1", "b1", "a2"]
    assert [each.error.reason for each in replies] == ["a", "b", "a"]
    assert {name for names in one.pulled for name in names} == {"a1", "a2"}
    assert {name for names in two.pulled for name in names} == {"b1"}
    assert joint.pull_messages(["a1", "b1", "never sent"]) == []


def test_messages_are_pulled_by_their_ids():
    one, two = FakeGrid({1: 0, 3: 0}, "a"), FakeGrid({2: 0}, "b")
    joint = JointGrid([one, two])
    assert joint.push_messages(to(1, 2, 3)) == ["a1", "b1", "a2"]
    assert [each.metadata.reply_to_message_id for each in joint.pull_messages(["b1"])] == ["b1"]
    assert one.pulled == []
    rest = joint.pull_messages(["a2", "b1", "a1"])
    assert sorted(each.metadata.reply_to_message_id for each in rest) == ["a1", "a2"]


def test_a_node_that_came_after_the_last_look_is_found():
    two = FakeGrid({}, "b")
    joint = JointGrid([FakeGrid({1: 0}, "a"), two])
    assert joint.get_node_ids() == [1]
    two.looks[2] = 0
    assert joint.push_messages(to(2, 1)) == ["b1", "a1"]


def test_what_cannot_be_sent_has_no_id_and_no_reply(clock):
    joint = JointGrid([FakeGrid({1: 0, 3: 0}, "a", gone={3}), FakeGrid({2: 0}, "b")])
    assert joint.push_messages(to(3, 9, 2)) == ["", "", "b1"]
    assert len(list(joint.send_and_receive(to(3, 9, 1)))) == 1
    # On top of it real devices have one reply each.
    replies = DeviceGrid(joint).send_and_receive(to(3, 1, 2, 9))
    found = {each.metadata.src_node_id: absence_of(each) for each in replies}
    assert found == {3: FailureKind.AWAY, 9: FailureKind.AWAY, 1: None, 2: None}


def test_a_grid_that_sent_nothing_returns_nothing():
    one = FakeGrid({1: 0})
    one.push_messages = lambda messages: []
    assert JointGrid([one]).push_messages(to(1)) == [""]


def test_an_exchange_ends_in_time(clock):
    joint = JointGrid([FakeGrid({1: 3}, "a"), FakeGrid({2: 10**9}, "b")])
    (reply,) = joint.send_and_receive(to(1, 2), timeout=5.0)
    assert reply.error.reason == "a"
    assert clock.now == pytest.approx(1005)


@pytest.mark.parametrize("look", ["get_node_ids", "get_nodes"])
def test_a_node_of_two_grids_is_refused(look):
    joint = JointGrid([FakeGrid({1: 0, 7: 0}), Talkative({7: 0})])
    with pytest.raises(MestFedError, match="two grids that are joined have a node 7; allowed: "):
        getattr(joint, look)()


def test_a_message_id_of_two_grids_is_refused():
    joint = JointGrid([FakeGrid({1: 0}, "same"), FakeGrid({2: 0}, "same")])
    with pytest.raises(MestFedError, match="two messages have the id 'same1'"):
        joint.push_messages(to(1, 2))


def test_the_run_is_that_of_the_first_grid():
    grids = FakeGrid({}), FakeGrid({})
    joint = JointGrid(grids)
    joint.set_run(empty_run(9))
    assert [each.run.run_id for each in (joint, *grids)] == [9, 9, 9]
    with pytest.raises(InputError, match="a joint grid of no grid"):
        JointGrid([])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "an edge link needs deployment.link_certificates FOLDER"),
        (
            {"link_insecure": True, "link_certificates": "tls"},
            "deployment.link_certificates = 'tls' is not allowed beside deployment.link_insecure",
        ),
        (
            {"link": "0.0.0.0:9443", "link_insecure": True},
            "deployment.link = '0.0.0.0:9443' is not allowed without TLS",
        ),
        ({"link": "here", "link_insecure": True}, "deployment.link = 'here' is not allowed"),
        (
            {"link_certificates": "tls", "link_enrol": "9444"},
            "deployment.link_enrol = '9444' is not allowed; allowed: HOST:PORT",
        ),
    ],
)
def test_a_link_that_cannot_be_is_one_line(keys, said):
    config = tiny_config(deployment={"link": "127.0.0.1:9443"} | keys)
    with pytest.raises(InputError) as caught:
        LinkSettings.of(config.deployment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_certificates_that_are_not_there_are_one_line(tmp_path):
    keys = {"link": "127.0.0.1:0", "link_certificates": str(tmp_path)}
    task = Task(tiny_config(deployment=keys))
    grid = FakeGrid({})
    with (
        pytest.raises(InputError, match=r"server\.pem cannot be read"),
        joined_with_link(task, grid),
    ):
        pass
    assert KEYS.listen == "deployment.link"


CONFIG = {
    "run": {"rounds": 2},
    "fleet": {"devices": 2, "mix": "rpi-4:1", "deadline": 100.0},
    "server": {"clients_per_round": 2, "min_nodes": 2, "evaluate_clients_every": 2},
}


def config_of(folder, **deployment):
    return tiny_config(**CONFIG, deployment={"folder": str(folder), **deployment})


class FirstNodes(EngineGrid):
    """Shows the first of its nodes alone."""

    shown = 0

    def get_node_ids(self):
        return list(super().get_node_ids())[: self.shown]


def serve(config, shown, join=None):
    """Run the ServerApp over the engine's nodes of the first partitions, and what is joined."""
    flat = to_flat(config)
    with closing(SerialExecutor("mest_fed.client.app:app")) as executor:
        grid = FirstNodes(Fleet.of(Task(config)).nodes({}), executor, run_config=flat)
        grid.shown = shown
        how = {} if join is None else {"join": join}
        run_server_app(build_server_app(**how), grid, run_config=flat)


def lean_node(config, port, folder, partition):
    """Start a lean node with a partition's examples, in a thread that ends with the server."""
    task = Task(config)
    data, place = task.data.train.examples, task.partitions[partition]
    np.savez(folder / "own.npz", x=data.inputs[place], y=data.targets[place])
    node = NodeDescription("lean", profile_name="rpi-4", partition=partition)
    patience = Patience(first=0.05, longest=0.2, altogether=2.0)

    def work():
        with NodeLink(f"127.0.0.1:{port}", node, insecure=True, patience=patience) as link:
            runner = NodeRunner(
                link, node, NodeSetup(str(folder / "own.npz")), NodeFolder(folder / "state")
            )
            with pytest.raises(RefusedError):  # once the server is gone
                runner.run()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.timeout(90)
def test_a_round_of_both_kinds_gives_the_bits_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(deployed, "write_report", lambda folder: None)
    serve(config_of(tmp_path / "engine"), 2)
    (port,) = free_ports(1)
    config = config_of(tmp_path / "joint", link=f"127.0.0.1:{port}", link_insecure=True)
    assert from_flat(to_flat(config)) == config
    thread = lean_node(config, port, tmp_path, 1)
    begun = time.monotonic()
    serve(config, 1, joined_with_link)
    wall = time.monotonic() - begun
    thread.join(timeout=30)
    assert not thread.is_alive()

    clients = rows(tmp_path / "joint", "clients.jsonl")
    asked = [(row["round"], row["partition"], row["status"]) for row in clients]
    assert sorted(asked) == [(n, p, "ok") for n in (1, 2) for p in (0, 1)]
    assert all(0 < row["train_seconds"] < wall for row in clients)
    assert [row["round"] for row in rows(tmp_path / "joint", "rounds.jsonl")] == [0, 1, 2]
    models = [
        torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("engine", "joint")
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
