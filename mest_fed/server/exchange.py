"""Exchanges with devices that may go away: which reply belongs to which instruction, and when."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from flwr.app import Error, Message, MessageType
from flwr.serverapp import Grid

from mest_fed.schema import FailureKind, TaskStatus, code_of_failure, failure_of_code
from mest_fed.server.grids import RunGrid, await_reply, others_may_come, replies_to

Who = TypeVar("Who")


def absence_of(reply: Message) -> FailureKind | None:
    """Say why a device did not reply, or not yet; None if it did, if only with an error."""
    if not reply.has_error():
        return None
    failure = failure_of_code(reply.error.code)
    absent = (TaskStatus.AWAY, TaskStatus.DECLINED, TaskStatus.DROPPED, TaskStatus.LATE)
    return failure if failure.status in absent else None


class Awaited(Generic[Who]):
    """Instructions whose replies are awaited.

    A reply belongs to the instruction that it names (``reply_to_message_id``). Its source does not
    say so: for a device that went away Flower's SuperLink writes the reply itself.

    Parameters
    ----------
    sent : iterable of (Message, Who)
        Each instruction, and what the sender knows of it. A message has its id once the grid has
        sent it, which may be while replies are read.
    """

    def __init__(self, sent: Iterable[tuple[Message, Who]] = ()) -> None:
        self._unnamed = deque(sent)
        self._by_id: dict[str, Who] = {}

    def add(self, sent: Iterable[tuple[Message, Who]]) -> None:
        """Await the replies to further instructions."""
        self._unnamed.extend(sent)

    def take(self, reply: Message) -> Who | None:
        """Return what is known of a reply's instruction; None if it is not awaited (any more)."""
        name = reply.metadata.reply_to_message_id
        if name not in self._by_id:
            self._read_ids()
        return self._by_id.pop(name, None)

    def await_again(self, reply: Message, who: Who) -> None:
        """Go on awaiting what was taken with a reply that says that there is none yet."""
        self._by_id[reply.metadata.reply_to_message_id] = who

    def names(self) -> list[str]:
        """Return the ids of the instructions that were sent and have no reply."""
        self._read_ids()
        return list(self._by_id)

    def rest(self) -> list[Who]:
        """Return what is known of the instructions that have no reply."""
        return [*self._by_id.values(), *(who for _, who in self._unnamed)]

    def _read_ids(self) -> None:
        while self._unnamed and (name := self._unnamed[0][0].metadata.message_id):
            self._by_id[name] = self._unnamed.popleft()[1]


class Duration(NamedTuple):
    """How long a device took for an instruction to train, as the server saw it.

    Parameters
    ----------
    start : float
        When it was sent, on the clock of :func:`time.monotonic`.
    seconds : float
        Until its reply was here: transfers and training together.
    """

    start: float
    seconds: float


class DeviceGrid(RunGrid):
    """Flower's grid of real devices, made safe against devices that go away.

    An exchange by Flower's own ``send_and_receive`` ends the run where an instruction could not be
    sent, as to a device that has just signed off: the SuperLink gives it an empty id. Here each
    instruction has one reply: the device's, or an error that says why there is none.

    Parameters
    ----------
    grid : Grid
        Flower's own.

    Attributes
    ----------
    durations : dict of int to Duration
        Node id -> how long its last instruction to train took.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.others_may_come = others_may_come(grid)
        self._sent: dict[str, tuple[int, str, float]] = {}
        self.durations: dict[int, Duration] = {}

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run."""
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return what is known of the nodes that are online."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; return the id of each, empty for one that could not be sent."""
        messages = list(messages)
        # Flower's grids differ in what they return for what was not sent; all name the messages.
        sent = set(self._grid.push_messages(messages)) if messages else set()
        now, names = time.monotonic(), []
        for meta in (message.metadata for message in messages):
            names.append(meta.message_id if meta.message_id in sent else "")
            if names[-1]:
                self._sent[meta.message_id] = meta.dst_node_id, meta.message_type, now
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are here and were not returned before."""
        names, replies = [name for name in message_ids if name in self._sent], []
        for reply in self._grid.pull_messages(names) if names else ():
            sent = self._sent.pop(reply.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            node_id, message_type, start = sent
            if absence_of(reply) is FailureKind.AWAY:
                # It was sent, and may have arrived, so that its bytes count.
                went = code_of_failure(FailureKind.WENT_AWAY)
                reply.error = Error(went, reply.error.reason)
            if message_type == MessageType.TRAIN:
                self.durations[node_id] = Duration(start, time.monotonic() - start)
            replies.append(reply)
        return replies

    def await_reply(self, seconds: float) -> None:
        """Wait until a reply may be there, after so many seconds at most."""
        await_reply(self._grid, seconds)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send messages, then yield a reply to each, as they come.

        Parameters
        ----------
        messages : iterable of Message
            All are sent before the first reply is read.
        timeout : float, optional
            Seconds to wait; then the others are late. Without it a device replies or is found to be
            away: the SuperLink says so two heartbeats after its last.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        messages = list(messages)
        return self._replies(messages, self.push_messages(messages), end)

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return all of the nodes: Flower names those alone that are connected."""
        return list(node_ids)

    def wait_for_nodes(self, node_ids: Sequence[int]) -> bool:
        """Return False: which node comes next is not known."""
        return False

    def train_seconds(self) -> Mapping[int, float]:
        """Return how long each node took for its last instruction to train."""
        return {node_id: took.seconds for node_id, took in self.durations.items()}

    def _replies(self, messages: list[Message], names: list[str], end: float) -> Iterator[Message]:
        awaited = {}
        for name, message in zip(names, messages, strict=True):
            if name:
                awaited[name] = message
            else:
                yield _no_reply(message, FailureKind.AWAY, "the instruction could not be sent")
        for reply in replies_to(self, set(awaited), end):
            del awaited[reply.metadata.reply_to_message_id]
            yield reply
        for message in awaited.values():
            yield _no_reply(message, FailureKind.NO_REPLY, "no reply in time")


def _no_reply(message: Message, failure: FailureKind, reason: str) -> Message:
    return Message(Error(code_of_failure(failure), reason), reply_to=message)
