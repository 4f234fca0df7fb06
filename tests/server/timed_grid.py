"""A grid in virtual time for the tests of the server: every device takes as long as it is told."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from server_parts import NODES, StubGrid, capability, error_to, metrics, named

from mest_fed.rng import numpy_generator
from mest_fed.server.flower_internals import set_message_id
from mest_fed.sparsity.state import SparseState
from mest_fed.wire import decode, encode, mask_hash
from mest_fed.wire.records import from_record, to_record


def drift(state, node_id, number):
    """Return what a device makes of a model: every value moves by a draw of its own."""
    rng = numpy_generator(node_id, "drift", number)

    def moved(tensors):
        return {
            name: array + rng.normal(scale=0.01, size=array.shape).astype(np.float32)
            for name, array in tensors.items()
        }

    return SparseState(state.masks, moved(state.values), moved(state.dense))


@dataclass
class Flying:
    message_id: str
    start: float
    number: int
    arrival: float
    reply: Message
    masks: dict  # that the node holds from then on


class TimedGrid(StubGrid):
    """Devices that train as told, and take as long as told.

    Parameters
    ----------
    strategy : MestStrategy
        Gives the specification and the codec of uploads.
    seconds : dict of int to float, or callable
        From a node's instruction to its reply; a callable takes the node and the number of the
        instruction.
    train : callable
        From the state that a node received, the node and the round to the state that it sends; a
        text for an error.
    """

    def __init__(self, strategy, seconds=None, train=drift, density=0.2):
        super().__init__({node: capability(p, density) for p, node in enumerate(NODES)})
        self.spec, self.codec = strategy.model.spec, strategy.config.wire.upload
        self.seconds = seconds if callable(seconds) else lambda node, _: (seconds or {})[node]
        self.train = train
        self.now = 0.0
        self.held = {}
        self.evaluation_seconds = 0.0
        self.log, self.evaluated = [], []
        self._ids, self._numbers = itertools.count(1), itertools.count(1)
        self._flying = {}
        self._unread = {}

    def push_messages(self, messages):
        return [self.push_again(message, self.now, next(self._numbers)) for message in messages]

    def push_again(self, message, start, number):
        name, node = str(next(self._ids)), message.metadata.dst_node_id
        set_message_id(message, name)
        answering = [f for f in self._flying.values() if f.arrival < math.inf]
        assert all(f.reply.metadata.src_node_id != node for f in answering), "it is busy"
        arrival = start + self.seconds(node, number)
        self._flying[name] = Flying(name, start, number, arrival, *self._trained(message))
        self.log.append((start, node, message.content["mest"]["round"]))
        return name

    def in_flight(self):
        return list(self._flying.values())

    def wait_until(self, now):
        self.now = max(self.now, now)
        for flying in sorted(self._flying.values(), key=lambda flying: flying.arrival):
            if flying.arrival <= self.now:
                del self._flying[flying.message_id]
                self.held[flying.reply.metadata.src_node_id] = flying.masks
                self._unread[flying.message_id] = flying.reply

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        if not any(name in self._unread for name in ids):
            self.wait_until(min(self._flying[name].arrival for name in ids))
        return [self._unread.pop(name) for name in ids if name in self._unread]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages and messages[0].metadata.message_type == MessageType.EVALUATE:
            self.now += self.evaluation_seconds
            return [self._evaluated(named(message)) for message in messages]
        return list(super().send_and_receive(messages))

    def resumed(self, strategy):
        """Return a grid that goes on from here, for another strategy, with nothing on its way."""
        other = TimedGrid(strategy, self.seconds, self.train)
        other.capabilities, other.evaluation_seconds = self.capabilities, self.evaluation_seconds
        other.now, other.held = self.now, dict(self.held)
        self._numbers, other._numbers = itertools.tee(self._numbers)
        return other

    def _received(self, message):
        masks = self.held.get(message.metadata.dst_node_id)
        known = {mask_hash(masks): masks} if masks else {}
        return decode(from_record(message.content), self.spec, known=known)

    def _trained(self, message):
        node = message.metadata.dst_node_id
        state = self._received(message)
        result = self.train(state, node, message.content["mest"]["round"])
        if isinstance(result, str):
            return error_to(message, result), self.held.get(node)
        payload, _ = encode(
            result, self.spec, values=self.codec, known=state.masks, reference=state
        )
        content = to_record(payload)
        content["metrics"] = metrics(self.capabilities[node]["examples"])
        return Message(content, reply_to=message), state.masks

    def _evaluated(self, message):
        node = message.metadata.dst_node_id
        self.evaluated.append(node)
        self.held[node] = self._received(message).masks
        numbers = MetricRecord({"num-examples": 4, "loss-sum": 1.0, "correct": 3})
        return Message(RecordDict({"metrics": numbers}), reply_to=message)


def play(strategy, grid, rounds, after=None):
    """Play rounds as Flower's ``start`` does; return their records."""
    records = []
    for number in range(1, rounds + 1):
        nothing = strategy.configure_train(number, None, None, grid)
        strategy.aggregate_train(number, grid.send_and_receive(nothing))
        evaluations = strategy.configure_evaluate(number, None, None, grid)
        strategy.aggregate_evaluate(number, grid.send_and_receive(evaluations))
        records.append(strategy.record)
        if after is not None:
            after(number)
    return records


def outcomes(record):
    """Return node -> (status, staleness) of a round."""
    return {client.node_id: (client.status, client.staleness) for client in record.clients}
