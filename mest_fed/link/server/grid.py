"""Flower's Grid over the edge link: any ServerApp drives lean nodes.

Flower's messages become instructions of the link, and outcomes become replies. Who a node is, and
how it trains, is worked out here, where torch is: a query never travels.
"""

import math
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from mest_fed.errors import MestFedError, WireError
from mest_fed.link.messages import BEGUN, START, Instruction, InstructionKind, Outcome
from mest_fed.link.server.edge_server import EdgeServer
from mest_fed.link.server.lean_run import LeanRun
from mest_fed.link.server.nodes import NodeInfo
from mest_fed.link.server.objects import Blob
from mest_fed.schema import RAISED, FailureKind, code_of_failure
from mest_fed.server.flower_internals import (
    NODE_UNAVAILABLE,
    Run,
    bare_array,
    empty_run,
    error_reply,
    set_message_id,
)
from mest_fed.server.grids import RunGrid, replies_to
from mest_fed.wire.npy import HEADER, read_npy
from mest_fed.wire.records import ARRAYS, CONFIG, from_record

log = getLogger("flwr.mest_fed")

_KINDS = {
    MessageType.TRAIN: InstructionKind.TRAIN,
    MessageType.EVALUATE: InstructionKind.EVALUATE,
}
_METRICS = "metrics"
#: Replies that nobody asks for are dropped then: of a round that ended without them.
_STALE_SECONDS = 600.0


@dataclass(frozen=True)
class LinkNode:
    """What a grid says of a node, as Flower's own does.

    Parameters
    ----------
    node_id : int
        Its id.
    last_activated_at : str
        Since when its session is there: another one if it began anew.
    name : str
        What its certificate calls it; empty where a grid does not know.
    """

    node_id: int
    last_activated_at: str
    name: str = ""


class LinkGrid(RunGrid):
    """Flower's Grid over an edge link.

    Parameters
    ----------
    server : EdgeServer
        Runs; it stays open when the grid is no longer used.
    run : LeanRun
        What nodes are told.
    deadline : float
        Seconds after which an instruction is over; 0 for no limit.
    joins : Run, optional
        The run of another grid that this one is joined with, which this process serves already.
        Without it the run is a new one.
    """

    others_may_come = True

    def __init__(
        self, server: EdgeServer, run: LeanRun, *, deadline: float = 0.0, joins: Run | None = None
    ) -> None:
        self._server, self._lean, self._deadline = server, run, deadline
        self._lock = threading.Lock()
        self._sent: dict[str, Message] = {}
        self._replies: dict[str, tuple[float, Message]] = {}
        #: By which nodes know that the server was started anew, and which rounds it repeats then.
        self._start, self._begun = secrets.token_hex(8), -1
        #: Arrays that several messages share -> the blob of each: the last broadcast's.
        self._blobs: dict[int, tuple[ArrayRecord, dict[str, Blob]]] = {}
        if joins is None:
            self.set_run(empty_run(secrets.randbits(62)))
        else:
            self._run = joins

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are there, and have read their examples."""
        return [node.id for node in self._ready()]

    def get_nodes(self) -> list[LinkNode]:
        """Return what is known of these nodes."""
        return [LinkNode(node.id, repr(node.since), node.identity.name) for node in self._ready()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Give instructions; return their ids, empty for one whose node is not there."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these ids that are here and were not returned before."""
        self._take_outcomes(0.0)
        with self._lock:
            return [self._replies.pop(name)[1] for name in message_ids if name in self._replies]

    def await_reply(self, seconds: float) -> None:
        """Return as soon as a node has replied, after so many seconds at most."""
        self._take_outcomes(seconds)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages and yield the replies that come in time, as they come."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        waiting = {name for name in self.push_messages(messages) if name}
        return replies_to(self, waiting, end)

    def _ready(self) -> list[NodeInfo]:
        """Return the nodes that can be asked: one registers before it reads its examples, too."""
        return [node for node in self._server.nodes() if node.description.examples]

    def _push(self, message: Message) -> str:
        meta = message.metadata
        node = next((it for it in self._ready() if it.id == meta.dst_node_id), None)
        name = secrets.token_hex(16)
        set_message_id(message, name)
        if node is None:
            return ""
        if meta.message_type == MessageType.QUERY:
            self._keep(name, self._capability(node, message))
            return name
        kind = _KINDS.get(meta.message_type)
        if kind is None:
            reason = f"a lean node has no answer to a message of type {meta.message_type!r}"
            self._keep(name, error_reply(message, RAISED, reason))
            return name
        try:
            instruction, blobs = self._instruction(name, kind, node, message)
            with self._lock:
                self._sent[name] = message
            self._server.submit(node.id, instruction, blobs)
        except MestFedError as error:  # it has gone, or has too much to do
            with self._lock:
                self._sent.pop(name, None)
            self._keep(name, error_reply(message, NODE_UNAVAILABLE, str(error)))
        return name

    def _instruction(
        self, name: str, kind: InstructionKind, node: NodeInfo, message: Message
    ) -> tuple[Instruction, dict[str, Blob]]:
        config = message.content.config_records[CONFIG]
        number, mutate = int(str(config["round"])), bool(config.get("mutate", False))
        if self._begun < 0:
            self._begun = number - 1
        scalars = {
            **self._lean.order(node, number, mutate=mutate),
            START: self._start,
            BEGUN: self._begun,
        }
        record = message.content.array_records[ARRAYS]
        header = Blob(from_record(message.content).header)
        blobs = {HEADER: header, **self._shared(record)}
        instruction = Instruction(
            name,
            kind,
            number,
            self._deadline,
            scalars,
            {part: blob.ref for part, blob in blobs.items()},
        )
        return instruction, blobs

    def _shared(self, record: ArrayRecord) -> dict[str, Blob]:
        """Return the blobs of arrays, which all messages of a tier share."""
        held = self._blobs.get(id(record))
        if held is None or held[0] is not record:
            while len(self._blobs) > 32:
                del self._blobs[next(iter(self._blobs))]
            blobs = {name: Blob(bytes(array.data)) for name, array in record.items()}
            held = self._blobs[id(record)] = record, blobs
        return held[1]

    def _capability(self, node: NodeInfo, message: Message) -> Message:
        try:
            return Message(self._lean.capability(node), reply_to=message)
        except MestFedError as error:
            return error_reply(message, RAISED, str(error))

    def _take_outcomes(self, timeout: float) -> None:
        for outcome in self._server.poll(timeout):
            with self._lock:
                message = self._sent.pop(outcome.instruction.id, None)
            if message is not None:
                self._keep(outcome.instruction.id, _reply(message, outcome))

    def _keep(self, name: str, reply: Message) -> None:
        with self._lock:
            now = time.monotonic()
            for old in [it for it, (at, _) in self._replies.items() if at < now - _STALE_SECONDS]:
                del self._replies[old]
            self._replies[name] = now, reply


def _reply(message: Message, outcome: Outcome) -> Message:
    """Return Flower's reply of an outcome."""
    if outcome.failure is not None:
        kind: FailureKind = outcome.failure
        return error_reply(message, code_of_failure(kind), outcome.reason or kind.label)
    metrics: dict[str, Any] = {
        name: value if isinstance(value, int | float) else [float(each) for each in value]
        for name, value in outcome.metrics.items()
    }
    if outcome.peak_bytes:
        metrics["measured-peak"] = outcome.peak_bytes
    if outcome.seconds:
        metrics["work-seconds"] = outcome.seconds  # an identifier would be a sum of the task
    records = _records(outcome.objects) if outcome.objects else {}
    content = RecordDict({_METRICS: MetricRecord(metrics), **records})
    return Message(content, reply_to=message)


def _records(objects: Mapping[str, Any]) -> dict[str, ArrayRecord | ConfigRecord]:
    """Return a payload's objects as records; whether they are one is checked by who reads them."""
    arrays = {name: _array(name, bytes(data)) for name, data in objects.items() if name != HEADER}
    header = bytes(objects.get(HEADER, b""))
    return {ARRAYS: ArrayRecord(arrays), CONFIG: ConfigRecord({HEADER: header})}


def _array(name: str, data: bytes) -> Any:
    try:
        values = read_npy(name, data)
    except WireError:  # refused where the update is read
        return bare_array("uint8", (len(data),), "unknown", data)
    return bare_array(str(values.dtype), values.shape, "numpy.ndarray", data)
