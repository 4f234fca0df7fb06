"""EngineGrid: Flower's Grid over an executor, so that any Flower ServerApp drives a fleet.

:class:`mest_fed.FleetGrid` is the one for scripts and notebooks: it makes population, executor and
simulated devices itself.
"""

import math
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, UserConfigValue

from mest_fed.server.aggregation.partial import WorkerAggregator
from mest_fed.server.flower_internals import Run, empty_run
from mest_fed.server.grids import RunGrid
from mest_fed.simulation.engine.dispatch import Dispatcher, Streaming
from mest_fed.simulation.engine.executor import Executor
from mest_fed.simulation.engine.interfaces import (
    AvailabilitySimulator,
    DeviceSimulator,
    DictStates,
    Population,
    States,
    TaskObserver,
)
from mest_fed.simulation.engine.pending import PendingTasks


class ReplyStream(Iterator[Message]):
    """Replies in message order; clients run as these are read.

    Parameters
    ----------
    replies : generator of Message
        The replies.
    """

    def __init__(self, replies: Generator[Message, None, None]) -> None:
        self._replies = replies
        self._exhausted = False

    def __iter__(self) -> "ReplyStream":
        """Return the stream itself.

        Raises
        ------
        RuntimeError
            If it was read to its end before: an empty second reading would go unnoticed.
        """
        if self._exhausted:
            raise RuntimeError(
                "these replies were read already; a grid with stream=False gives lists"
            )
        return self

    def __next__(self) -> Message:
        """Return the next reply."""
        try:
            return next(self._replies)
        except StopIteration:
            self._exhausted = True
            raise

    def close(self) -> None:
        """Stop reading: the rest of the messages do not run."""
        self._replies.close()


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


class EngineGrid(RunGrid):
    """Flower's Grid over an executor of clients.

    Replies are the same whatever the executor. With a simulator, time is virtual: an exchange takes
    as long as its slowest device, and who polls for replies finds them as they arrive.

    Parameters
    ----------
    nodes : Population
        The fleet.
    executor : Executor
        Where clients run; it stays open when the grid is no longer used.
    run_config : mapping of str to scalar, optional
        The run configuration that clients see.
    simulator : DeviceSimulator, optional
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
    observer : callable, optional
        Called with each instruction that ends and its result, in the order in which replies count.
    """

    def __init__(
        self,
        nodes: Population,
        executor: Executor,
        *,
        run_config: Mapping[str, UserConfigValue] | None = None,
        simulator: DeviceSimulator | None = None,
        states: States | None = None,
        stream: bool = False,
        run_id: int = 1,
        observer: TaskObserver | None = None,
    ) -> None:
        self.states: States = DictStates() if states is None else states
        self._dispatcher = Dispatcher(
            nodes,
            run_id=run_id,
            run_config=dict(run_config or {}),
            simulator=simulator,
            states=self.states,
            observer=observer,
        )
        self._availability = simulator if isinstance(simulator, AvailabilitySimulator) else None
        self._executor = executor
        self._stream = stream
        self._lock = threading.Lock()
        self._pending = PendingTasks(executor)
        self._unread: dict[str, Message] = {}
        self._aggregator: WorkerAggregator[Message] | None = None
        self.set_run(empty_run(run_id))

    def set_run(self, run: Run) -> None:
        """Set the run; messages made in this process belong to it from now on."""
        super().set_run(run)
        self._dispatcher.run_id = run.run_id

    def get_node_ids(self) -> range:
        """Return the ids of all nodes, in the order of the fleet."""
        return self._dispatcher.node_ids

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run; 0 without a simulator."""
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
                self._pass_time(self._pending.next_arrival(ids))
            return [self._unread.pop(name) for name in ids if name in self._unread]

    def wait_until(self, now: float) -> None:
        """Let virtual time pass; nothing happens if it has passed already."""
        with self._lock:
            self._pass_time(now)

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return the available nodes in the given order; without a simulator all."""
        simulator = self._availability
        return list(node_ids) if simulator is None else simulator.present_nodes(node_ids)

    def wait_for_nodes(self, node_ids: Sequence[int]) -> bool:
        """Let virtual time pass until one of these nodes may be there; False if none ever will."""
        simulator = self._availability
        moment = math.inf if simulator is None else simulator.next_present(node_ids)
        if moment < math.inf:
            self.wait_until(moment)
        return moment < math.inf

    def train_seconds(self) -> Mapping[int, float]:
        """Return how long nodes took to train in this round, as far as known."""
        return {} if self._availability is None else self._availability.train_seconds()

    def in_flight(self) -> list[InFlight]:
        """Return what is on its way, in the order in which it began, for a checkpoint."""
        with self._lock:
            return [
                InFlight(
                    pending_task.message.metadata.message_id,
                    pending_task.node_id,
                    pending_task.start,
                    pending_task.number,
                )
                for pending_task in self._pending
            ]

    def sum_in_workers(self, aggregator: WorkerAggregator[Message]) -> None:
        """Have the replies of the next exchange summed where they are made.

        The replies of that exchange are what the aggregator leaves of them, and the aggregator gets
        the sum once they were read to the end.
        """
        self._aggregator = aggregator

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> ReplyStream | list[Message]:
        """Send messages and return their replies, in the order of the messages.

        Parameters
        ----------
        messages : iterable of Message
            Taken lazily if the grid streams.
        timeout : float, optional
            Seconds to wait: of virtual time with a simulator, where a later reply becomes an error
            reply; else of wall-clock time, after which the remaining messages have no reply.
        """
        aggregator, self._aggregator = self._aggregator, None
        exchange = Streaming(
            self._executor,
            self._dispatcher,
            self._pending.last_of,
            aggregator=aggregator,
            timeout=timeout,
        )
        replies = exchange.replies(map(self._dispatcher.take, messages))
        return ReplyStream(replies) if self._stream else list(replies)

    def _begin(
        self, message: Message, *, start: float | None = None, number: int | None = None
    ) -> str:
        message = self._dispatcher.take_copy(message)
        earlier = self._pending.last_of(message.metadata.dst_node_id)
        pending_task, job = self._dispatcher.pending_task(
            message, after=earlier, start=start, number=number
        )
        self._pending.add(pending_task, job)
        return message.metadata.message_id

    def _pass_time(self, now: float) -> None:
        """Let virtual time pass, and take in what arrives meanwhile."""
        if now < math.inf:
            self._dispatcher.advance(now)
        for pending_task in self._pending.land(self.now):
            self._unread[pending_task.message.metadata.message_id] = self._dispatcher.land(
                pending_task
            )
