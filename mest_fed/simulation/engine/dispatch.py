"""From a message to a job, and from what came of it to the device's state and the clock."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict, UserConfigValue

from mest_fed.rng import derive_seed
from mest_fed.server.aggregation.partial import PartialAggregate, WorkerAggregator
from mest_fed.server.flower_internals import (
    NODE_UNAVAILABLE,
    error_reply,
    rebuild_message,
    set_message_id,
)
from mest_fed.simulation.engine.client_runner import (
    Job,
    Outcome,
    TaskTimeout,
    private_copy,
    resolve,
)
from mest_fed.simulation.engine.executor import Executor
from mest_fed.simulation.engine.interfaces import (
    DeviceSimulator,
    FleetNode,
    Population,
    States,
    TaskConditions,
    TaskObserver,
    TaskResult,
)
from mest_fed.simulation.engine.pending import PendingTask


class Dispatcher:
    """Begins instructions on the devices of a fleet, and ends them.

    Parameters
    ----------
    nodes : Population
        The fleet.
    run_id : int
        Id of the run.
    run_config : mapping of str to scalar
        What clients see.
    simulator : DeviceSimulator, optional
        What happens to the devices; by default nothing does, and no time passes.
    states : States
        The clients' states.
    observer : callable, optional
        Called with each instruction that ends and its result.
    """

    def __init__(
        self,
        nodes: Population,
        *,
        run_id: int,
        run_config: Mapping[str, UserConfigValue],
        simulator: DeviceSimulator | None,
        states: States,
        observer: TaskObserver | None = None,
    ) -> None:
        self._nodes = nodes
        self._run_config = run_config
        self._simulator = simulator
        self._states = states
        self._observer = observer
        self._message_ids = itertools.count(1)
        self._sent = 0
        self.run_id = run_id
        #: Until when devices work on what the server no longer waits for; checkpoints keep it.
        self.busy: dict[int, float] = {}

    @property
    def node_ids(self) -> range:
        """All nodes, in the order of the fleet."""
        return self._nodes.node_ids

    @property
    def virtual(self) -> bool:
        """Whether time is virtual."""
        return self._simulator is not None

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run."""
        return 0.0 if self._simulator is None else self._simulator.now

    def advance(self, now: float) -> None:
        """Let virtual time pass."""
        if self._simulator is not None:
            self._simulator.now = max(self._simulator.now, now)
        self.busy = {node: until for node, until in self.busy.items() if until > self.now}

    def take(self, message: Message) -> Message:
        """Give a message an id, and return one of the same content that keeps it.

        A server may send one message again, before the reply is here.
        """
        set_message_id(message, str(next(self._message_ids)))
        content = message.error if message.has_error() else message.content
        return rebuild_message(message.metadata, content)

    def take_copy(self, message: Message) -> Message:
        """Do as :meth:`take`, for a server that may edit the content before the client has it."""
        taken = self.take(message)
        if taken.has_content():
            taken.content = private_copy(taken.content)
        return taken

    def pending_task(
        self,
        message: Message,
        *,
        within: float = math.inf,
        after: PendingTask | None = None,
        start: float | None = None,
        number: int | None = None,
    ) -> tuple[PendingTask, Job | None]:
        """Begin an instruction; one that does not even begin has no job, but an outcome.

        Parameters
        ----------
        message : Message
            The instruction, as :meth:`take` or :meth:`take_copy` returned it.
        within : float
            Virtual seconds that the server waits.
        after : PendingTask, optional
            The device's instruction before this one, computed.
        start, number : float, int, optional
            Of an instruction that is begun again in a resumed run.
        """
        node_id = message.metadata.dst_node_id
        if node_id not in self._nodes:
            refusal = error_reply(message, NODE_UNAVAILABLE, f"there is no node {node_id}")
            pending_task = PendingTask(message, 0, self.now)
            pending_task.outcome = Outcome(TaskResult(refusal), RecordDict())
            return pending_task, None
        state = self._states.get(node_id) if after is None else _state(after)
        if start is None:
            start = max(self.now, self.busy.get(node_id, 0.0))
            start = start if after is None else max(start, after.busy_until)
        conditions = self._draw_conditions(message, start, within - (start - self.now), number)
        node = self._nodes[node_id]
        seed = self._seed(node_id, conditions)
        job = Job(message, self._context(node, state), conditions, node.cost, node.memory, seed)
        if conditions is None:
            return PendingTask(message, 0, start), job
        pending_task = PendingTask(message, conditions.number, start, conditions.at_least(message))
        if conditions.refusal is None:
            return pending_task, job
        reply = error_reply(message, NODE_UNAVAILABLE, conditions.refusal)
        pending_task.outcome = resolve(job, reply, job.context.state)
        return pending_task, None

    def land(self, pending_task: PendingTask) -> Message:
        """End an instruction: the device keeps its state, the simulator learns of it."""
        outcome = pending_task.outcome
        assert outcome is not None
        node_id = pending_task.node_id
        if node_id in self._nodes:
            self._states.put(node_id, outcome.state)
            if pending_task.busy_until > pending_task.arrival:
                self.busy[node_id] = pending_task.busy_until
            if self._simulator is not None:
                self._simulator.record(outcome.task_result)
        # An id that does not depend on which replies were read before.
        set_message_id(outcome.reply, f"{pending_task.message.metadata.message_id}-reply")
        if self._observer is not None:
            self._observer(pending_task.message, outcome.task_result)
        return outcome.reply

    def _draw_conditions(
        self, message: Message, start: float, within: float, number: int | None
    ) -> TaskConditions | None:
        if self._simulator is None:
            return None
        return self._simulator.draw_conditions(message, start=start, within=within, number=number)

    def _seed(self, node_id: int, conditions: TaskConditions | None) -> int:
        """Return where a client's generators begin: the same in a run that is resumed."""
        self._sent += 1
        if conditions is None or conditions.number == 0:
            return derive_seed(self.run_id, "client", node_id, self._sent)
        return derive_seed(self.run_id, "timed client", node_id, conditions.number)

    def _context(self, node: FleetNode, state: RecordDict | None) -> Context:
        return Context(
            run_id=self.run_id,
            node_id=node.node_id,
            node_config=dict(node.node_config),
            state=RecordDict() if state is None else state,
            run_config=self._run_config,  # one object, so that a chunk carries it once
        )


def _state(pending_task: PendingTask) -> RecordDict:
    assert pending_task.outcome is not None
    return pending_task.outcome.state


@dataclass
class Streaming:
    """Runs an exchange.

    Parameters
    ----------
    executor : Executor
        Where clients run.
    dispatcher : Dispatcher
        Begins and ends instructions.
    last_of : callable
        Gives the pending task that a node still has on its way, if any.
    aggregator : WorkerAggregator, optional
        Sums replies in the workers.
    timeout : float, optional
        As for :meth:`mest_fed.simulation.engine.grid.EngineGrid.send_and_receive`.
    """

    executor: Executor
    dispatcher: Dispatcher
    last_of: Callable[[int], PendingTask | None]
    aggregator: WorkerAggregator[Message] | None = None
    timeout: float | None = None

    def replies(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        """Run messages in waves, each of distinct nodes: a node's second message needs its first.

        An exchange ends where its reader stops.
        """
        self._until = self.dispatcher.now
        self._total: PartialAggregate | None = None
        self._began = time.monotonic()
        try:
            for _, wave in itertools.groupby(_with_wave(messages), key=lambda pair: pair[0]):
                yield from self._run_wave(message for _, message in wave)
        finally:
            self.dispatcher.advance(self._until)
        if self.aggregator is not None:
            self.aggregator.finalize(self._total)

    def _run_wave(self, messages: Iterable[Message]) -> Generator[Message, None, None]:
        pending: deque[PendingTask] = deque()
        exchange = self.executor.open(
            self._jobs(messages, pending), aggregator=self.aggregator, timeout=self._seconds_left()
        )
        try:
            while (outcome := exchange.take()) is not None:
                yield from self._refused(pending)
                if isinstance(outcome, TaskTimeout):
                    pending.popleft()  # no reply, and the device's state stays as it was
                    continue
                pending[0].outcome = outcome
                yield self._land(pending.popleft())
            yield from self._refused(pending)
            wave_total = exchange.total()
            if self._total is None:
                self._total = wave_total
            elif wave_total is not None:
                self._total = self._total.add(wave_total)
        finally:
            exchange.close()

    def _seconds_left(self) -> float | None:
        """Return the seconds of wall-clock time that are left for all waves together."""
        if self.dispatcher.virtual or self.timeout is None:
            return None
        return max(0.0, self._began + self.timeout - time.monotonic())

    def _jobs(self, messages: Iterable[Message], pending: deque[PendingTask]) -> Iterator[Job]:
        for message in messages:
            pending_task, job = self.dispatcher.pending_task(
                message,
                within=math.inf if self.timeout is None else self.timeout,
                after=self.last_of(message.metadata.dst_node_id),
            )
            pending.append(pending_task)
            if job is not None:
                yield job

    def _refused(self, pending: deque[PendingTask]) -> Iterator[Message]:
        while pending and pending[0].outcome is not None:
            yield self._land(pending.popleft())

    def _land(self, pending_task: PendingTask) -> Message:
        self._until = max(self._until, pending_task.arrival)
        return self.dispatcher.land(pending_task)


def _with_wave(messages: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Count waves: a new one begins at a node that the present one has."""
    wave, workers = 0, set[int]()
    for message in messages:
        node_id = message.metadata.dst_node_id
        if node_id in workers:
            wave += 1
            workers.clear()
        workers.add(node_id)
        yield wave, message
