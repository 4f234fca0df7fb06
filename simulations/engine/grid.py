"""FleetGrid: Flower's Grid over an executor, so that any Flower ServerApp drives a fleet."""

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing

from flwr.app import Context, Message, RecordDict, UserConfigValue
from flwr.serverapp import Grid

from simulations.engine.executor import Executor
from simulations.engine.fate import Fate
from simulations.engine.flower_internals import (
    NODE_UNAVAILABLE,
    Run,
    claim_identity,
    empty_run,
    error_reply,
    set_message_id,
)
from simulations.engine.nodes import Population
from simulations.engine.replies import ReplyStream
from simulations.engine.worker import Job, Outcome


class FleetGrid(Grid):
    """Flower's Grid over an executor of clients.

    Replies come in the order of the messages and are the same whatever the executor. The state of
    each client is kept here between exchanges.

    Parameters
    ----------
    nodes : Population
        The fleet, in the order that :meth:`get_node_ids` gives.
    executor : Executor
        Where clients run; it stays open when the grid is no longer used.
    run_config : mapping of str to scalar, optional
        The run configuration that clients see.
    fate : Fate, optional
        What happens to the devices; by default nothing does.
    stream : bool
        True: :meth:`send_and_receive` gives an iterator that runs clients as it is read, so that
        memory stays flat however large the fleet. False: it runs all and gives a list, for
        strategies that read replies twice or not at all.
    run_id : int
        Id of the run.
    """

    def __init__(
        self,
        nodes: Population,
        executor: Executor,
        *,
        run_config: Mapping[str, UserConfigValue] | None = None,
        fate: Fate | None = None,
        stream: bool = True,
        run_id: int = 1,
    ) -> None:
        self._nodes = nodes
        self._executor = executor
        self._run_config = dict(run_config or {})
        self._fate = fate
        self._stream = stream
        self._message_ids = itertools.count(1)
        self._queue = threading.Lock()
        self._pushed: list[Message] = []
        self._unread: dict[str, Message] = {}
        #: State of each client that has any, by node id; checkpoints read and restore it.
        self.states: dict[int, RecordDict] = {}
        self.set_run(empty_run(run_id))

    def set_run(self, run: Run) -> None:
        """Set the run; messages made in this process belong to it from now on."""
        self._run = run
        claim_identity(run.run_id)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> range:
        """Return the ids of all nodes, in the order of the fleet."""
        return self._nodes.node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages in and return their ids; they run at the next :meth:`pull_messages`."""
        taken = [self._take(message) for message in messages]
        with self._queue:
            self._pushed += taken
        return [message.metadata.message_id for message in taken]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run all messages pushed so far as one exchange; return the replies to these ids.

        Replies to other ids wait until they are pulled.
        """
        with self._queue:
            pushed, self._pushed = self._pushed, []
            for reply in self._exchange(pushed):
                self._unread[reply.metadata.reply_to_message_id] = reply
            return [self._unread.pop(name) for name in message_ids if name in self._unread]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> ReplyStream | list[Message]:
        """Send messages and return their replies, in the order of the messages.

        Parameters
        ----------
        messages : iterable of Message
            Taken lazily if the grid streams.
        timeout : float, optional
            Not used: a limit of wall-clock time would make results depend on this machine. A
            fate may have a deadline in virtual time.
        """
        replies = self._exchange(self._take(message) for message in messages)
        return ReplyStream(replies) if self._stream else list(replies)

    def _take(self, message: Message) -> Message:
        set_message_id(message, str(next(self._message_ids)))
        return message

    def _exchange(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        """Run messages in waves, each of distinct nodes: a node's second message needs its first.

        An exchange ends where its reader stops.
        """
        try:
            for _, wave in itertools.groupby(_with_wave(messages), key=lambda pair: pair[0]):
                yield from self._run_wave(message for _, message in wave)
        finally:
            if self._fate is not None:
                self._fate.end_of_exchange()

    def _run_wave(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        taken: deque[tuple[Message, str | None]] = deque()

        def jobs() -> Iterator[Job]:
            for message in messages:
                refusal = self._refusal(message)
                taken.append((message, refusal))
                if refusal is None:
                    yield Job(message, self._context(message.metadata.dst_node_id))

        def refused() -> Iterator[Message]:
            while taken and taken[0][1] is not None:
                message, reason = taken.popleft()
                yield self._settle(message, error_reply(message, NODE_UNAVAILABLE, str(reason)))

        with closing(self._executor.run(jobs())) as outcomes:
            for outcome in outcomes:
                yield from refused()
                message, _ = taken.popleft()
                self._keep_state(message.metadata.dst_node_id, outcome)
                yield self._settle(message, outcome.reply)
        yield from refused()

    def _refusal(self, message: Message) -> str | None:
        node_id = message.metadata.dst_node_id
        if node_id not in self._nodes:
            return f"there is no node {node_id}"
        return None if self._fate is None else self._fate.admits(message)

    def _context(self, node_id: int) -> Context:
        return Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config=dict(self._nodes[node_id].node_config),
            state=self.states.get(node_id) or RecordDict(),
            run_config=self._run_config,
        )

    def _keep_state(self, node_id: int, outcome: Outcome) -> None:
        if outcome.state:
            self.states[node_id] = outcome.state
        else:
            self.states.pop(node_id, None)

    def _settle(self, instruction: Message, reply: Message) -> Message:
        if self._fate is not None and instruction.metadata.dst_node_id in self._nodes:
            reply = self._fate.settle(instruction, reply)
        set_message_id(reply, str(next(self._message_ids)))
        return reply


def _with_wave(messages: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Count waves: a new one begins at a node that the present one has."""
    wave, members = 0, set[int]()
    for message in messages:
        node_id = message.metadata.dst_node_id
        if node_id in members:
            wave += 1
            members.clear()
        members.add(node_id)
        yield wave, message
