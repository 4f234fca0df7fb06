"""Waiting for replies: a grid that tells of them is not asked again and again."""

import math
import threading
import time

import pytest
from flwr.app import Message, RecordDict
from server_parts import NODES

from mest_fed.link.server.joint_grid import JointGrid
from mest_fed.server import grids
from mest_fed.server.exchange import DeviceGrid
from mest_fed.server.flower_internals import claim_identity, set_message_id
from mest_fed.server.grids import POLL_SECONDS, RunGrid, await_reply, replies_to

A, B, *_ = NODES


def message(node_id):
    claim_identity(1)
    found = Message(RecordDict(), node_id, "train")
    set_message_id(found, "1")
    return found


class Asked(RunGrid):
    """Has replies when it is told to, and counts how often it is asked for them."""

    def __init__(self):
        self.ready, self.times, self.nodes = [], 0, [A]

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        return [each.metadata.message_id for each in messages]

    def pull_messages(self, message_ids):
        self.times += 1
        found, self.ready = self.ready, []
        return found

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


class Telling(Asked):
    """Tells of replies."""

    def __init__(self):
        super().__init__()
        self.came = threading.Event()

    def await_reply(self, seconds):
        self.came.wait(seconds)

    def reply(self, reply):
        self.ready.append(reply)
        self.came.set()


@pytest.mark.parametrize("wrapped", [lambda it: it, DeviceGrid, lambda it: JointGrid([it])])
def test_a_reply_ends_the_wait(wrapped):
    grid, sent = Telling(), message(A)
    outer = wrapped(grid)
    timer = threading.Timer(0.2, grid.reply, [Message(RecordDict(), reply_to=sent)])
    timer.start()
    start = time.monotonic()
    if outer is grid:
        (reply,) = replies_to(grid, {"1"}, math.inf)
    else:
        (reply,) = outer.send_and_receive([sent])
    assert reply.metadata.reply_to_message_id == sent.metadata.message_id
    assert time.monotonic() - start < 5
    assert grid.times == 2  # when it was sent, and when the reply was there


def test_another_grid_is_asked_again_and_again(monkeypatch):
    slept = []
    monkeypatch.setattr(grids.time, "sleep", slept.append)
    await_reply(Asked(), math.inf)
    await_reply(Asked(), 0.01)
    assert slept == [POLL_SECONDS, 0.01]


def test_it_is_too_late(monkeypatch):
    grid = Asked()
    assert list(replies_to(grid, {"a"}, time.monotonic() - 1)) == []
    assert grid.times == 1


def test_of_several_that_are_joined_none_is_left_alone_for_long():
    one, other = Telling(), Asked()
    other.nodes = [B]
    start = time.monotonic()
    JointGrid([one, other]).await_reply(60.0)
    assert time.monotonic() - start < 10
