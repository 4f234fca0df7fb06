"""FleetGrid: Flower's Grid over an executor, so that any Flower ServerApp drives a fleet."""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict, UserConfigValue
from flwr.serverapp import Grid

from mest_fed.folding import Fold
from simulations.engine.dispatch import Dispatcher
from simulations.engine.executor import Executor
from simulations.engine.fate import Fate, Foresight
from simulations.engine.flower_internals import Run, claim_identity, empty_run
from simulations.engine.launches import Launches
from simulations.engine.nodes import Population
from simulations.engine.replies import ReplyStream
from simulations.engine.states import DictStates, States
from simulations.engine.streaming import Streaming


@dataclass(frozen=True)
class InFlight:
    """An instruction that has not arrived, for a checkpoint.

    Parameters
    ----------
    message_id : str
        Of the instruction.
    node_id : int
        Its device.
    start : float
        Virtual time at which the device began.
    number : int
        That its circumstances were drawn by.
    """

    message_id: str
    node_id: int
    start: float
    number: int


class FleetGrid(Grid):
    """Flower's Grid over an executor of clients.

    Replies are the same whatever the executor. With a fate, time is virtual: an exchange takes as
    long as its slowest device, and who polls for replies finds them as they arrive.

    Parameters
    ----------
    nodes : Population
        The fleet.
    executor : Executor
        Where clients run; it stays open when the grid is no longer used.
    run_config : mapping of str to scalar, optional
        The run configuration that clients see.
    fate : Fate, optional
        What happens to the devices; by default nothing does, and no time passes.
    states : States, optional
        Where clients' states are between exchanges; by default in memory.
    stream : bool
        False: :meth:`send_and_receive` runs all clients and gives a list, as Flower does; some of
        its strategies read it twice. True: it gives an iterator that runs clients as it is read,
        so that memory stays flat however large the cohort; what was sent must not be edited before
        all replies are read.
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
        states: States | None = None,
        stream: bool = False,
        run_id: int = 1,
    ) -> None:
        self.states: States = DictStates() if states is None else states
        self._dispatcher = Dispatcher(
            nodes,
            run_id=run_id,
            run_config=dict(run_config or {}),
            fate=fate,
            states=self.states,
        )
        self._foresight = fate if isinstance(fate, Foresight) else None
        self._executor = executor
        self._stream = stream
        self._lock = threading.Lock()
        self._launches = Launches(executor)
        self._unread: dict[str, Message] = {}
        self._fold: Fold[Message] | None = None
        self.set_run(empty_run(run_id))

    def set_run(self, run: Run) -> None:
        """Set the run; messages made in this process belong to it from now on."""
        self._run = run
        self._dispatcher.run_id = run.run_id
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
        return self._dispatcher.node_ids

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run; 0 without a fate."""
        return self._dispatcher.now

    @property
    def busy(self) -> dict[int, float]:
        """Until when devices work on what the server no longer waits for; checkpoints keep it."""
        return self._dispatcher.busy

    @busy.setter
    def busy(self, until: dict[int, float]) -> None:
        self._dispatcher.busy = dict(until)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Begin instructions now; return their ids."""
        with self._lock:
            return [self._begin(message) for message in messages]

    def push_again(self, message: Message, start: float, number: int) -> str:
        """Begin an instruction that was on its way when a run was interrupted.

        Parameters
        ----------
        message : Message
            The same as before.
        start, number : float, int
            As :meth:`in_flight` gave them.
        """
        with self._lock:
            return self._begin(message, start=start, number=number)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these ids that have arrived.

        If none has, virtual time passes until the first of them arrives. Replies to other ids
        wait until they are pulled.
        """
        with self._lock:
            ids = list(message_ids)
            if not any(name in self._unread for name in ids):
                self._pass_time(self._launches.next_arrival(ids))
            return [self._unread.pop(name) for name in ids if name in self._unread]

    def wait_until(self, now: float) -> None:
        """Let virtual time pass; nothing happens if it has passed already."""
        with self._lock:
            self._pass_time(now)

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now, in the order given; all if nobody knows."""
        fate = self._foresight
        return list(node_ids) if fate is None else fate.present_nodes(node_ids)

    def wait_for_nodes(self, node_ids: Sequence[int]) -> bool:
        """Let virtual time pass until one of these nodes may be there; False if none ever will."""
        fate = self._foresight
        moment = math.inf if fate is None else fate.next_present(node_ids)
        if moment < math.inf:
            self.wait_until(moment)
        return moment < math.inf

    def train_seconds(self) -> Mapping[int, float]:
        """Return how long nodes took to train in this round, as far as somebody knows."""
        return {} if self._foresight is None else self._foresight.train_seconds()

    def in_flight(self) -> list[InFlight]:
        """Return what is on its way, in the order in which it began, for a checkpoint."""
        with self._lock:
            return [
                InFlight(
                    launch.message.metadata.message_id, launch.node_id, launch.start, launch.number
                )
                for launch in self._launches
            ]

    def sum_in_workers(self, fold: Fold[Message]) -> None:
        """Have the replies of the next exchange summed where they are made.

        The replies of that exchange are what the fold leaves of them, and the fold gets the sum
        once they were read to the end.
        """
        self._fold = fold

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> ReplyStream | list[Message]:
        """Send messages and return their replies, in the order of the messages.

        Parameters
        ----------
        messages : iterable of Message
            Taken lazily if the grid streams.
        timeout : float, optional
            Seconds to wait: of virtual time with a fate, where a later reply becomes an error
            reply; else of wall-clock time, after which the remaining messages have no reply.
        """
        fold, self._fold = self._fold, None
        exchange = Streaming(
            self._executor, self._dispatcher, self._launches.last_of, fold=fold, timeout=timeout
        )
        replies = exchange.replies(map(self._dispatcher.take, messages))
        return ReplyStream(replies) if self._stream else list(replies)

    def _begin(
        self, message: Message, *, start: float | None = None, number: int | None = None
    ) -> str:
        message = self._dispatcher.take_copy(message)
        earlier = self._launches.last_of(message.metadata.dst_node_id)
        launch, job = self._dispatcher.launch(message, after=earlier, start=start, number=number)
        self._launches.add(launch, job)
        return message.metadata.message_id

    def _pass_time(self, now: float) -> None:
        """Let virtual time pass, and take in what arrives meanwhile."""
        if now < math.inf:
            self._dispatcher.advance(now)
        for launch in self._launches.land(self.now):
            self._unread[launch.message.metadata.message_id] = self._dispatcher.land(launch)
