"""From a message to a job, and from what came of it to the device's state and the clock."""

import itertools
import math
from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict, UserConfigValue

from mest_fed.rng import derive_seed
from simulations.engine.fate import Conditions, Fate, Settled
from simulations.engine.flower_internals import (
    NODE_UNAVAILABLE,
    error_reply,
    rebuild_message,
    set_message_id,
)
from simulations.engine.isolation import private_copy
from simulations.engine.launches import Launch
from simulations.engine.nodes import FleetNode, Population
from simulations.engine.states import States
from simulations.engine.worker import Job, Outcome, settle


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
    fate : Fate, optional
        What happens to the devices; by default nothing does, and no time passes.
    states : States
        The clients' states.
    """

    def __init__(
        self,
        nodes: Population,
        *,
        run_id: int,
        run_config: Mapping[str, UserConfigValue],
        fate: Fate | None,
        states: States,
    ) -> None:
        self._nodes = nodes
        self._run_config = run_config
        self._fate = fate
        self._states = states
        self._message_ids = itertools.count(1)
        self._launched = 0
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
        return self._fate is not None

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the run."""
        return 0.0 if self._fate is None else self._fate.now

    def advance(self, now: float) -> None:
        """Let virtual time pass."""
        if self._fate is not None:
            self._fate.now = max(self._fate.now, now)
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

    def launch(
        self,
        message: Message,
        *,
        within: float = math.inf,
        after: Launch | None = None,
        start: float | None = None,
        number: int | None = None,
    ) -> tuple[Launch, Job | None]:
        """Begin an instruction; one that does not even begin has no job, but an outcome.

        Parameters
        ----------
        message : Message
            The instruction, as :meth:`take` or :meth:`take_copy` returned it.
        within : float
            Virtual seconds that the server waits.
        after : Launch, optional
            The device's instruction before this one, computed.
        start, number : float, int, optional
            Of an instruction that is begun again in a resumed run.
        """
        node_id = message.metadata.dst_node_id
        if node_id not in self._nodes:
            refusal = error_reply(message, NODE_UNAVAILABLE, f"there is no node {node_id}")
            launch = Launch(message, 0, self.now)
            launch.outcome = Outcome(Settled(refusal), RecordDict())
            return launch, None
        state = self._states.get(node_id) if after is None else _state(after)
        if start is None:
            start = max(self.now, self.busy.get(node_id, 0.0))
            start = start if after is None else max(start, after.busy_until)
        conditions = self._meet(message, start, within - (start - self.now), number)
        node = self._nodes[node_id]
        seed = self._seed(node_id, conditions)
        job = Job(message, self._context(node, state), conditions, node.cost, node.memory, seed)
        if conditions is None:
            return Launch(message, 0, start), job
        launch = Launch(message, conditions.number, start, conditions.at_least(message))
        if conditions.refusal is None:
            return launch, job
        reply = error_reply(message, NODE_UNAVAILABLE, conditions.refusal)
        launch.outcome = settle(job, reply, job.context.state)
        return launch, None

    def land(self, launch: Launch) -> Message:
        """End an instruction: the device keeps its state, the fate learns of it."""
        outcome = launch.outcome
        assert outcome is not None
        node_id = launch.node_id
        if node_id in self._nodes:
            self._states.put(node_id, outcome.state)
            if launch.busy_until > launch.arrival:
                self.busy[node_id] = launch.busy_until
            if self._fate is not None:
                self._fate.note(outcome.settled)
        # An id that does not depend on which replies were read before.
        set_message_id(outcome.reply, f"{launch.message.metadata.message_id}-reply")
        return outcome.reply

    def _meet(
        self, message: Message, start: float, within: float, number: int | None
    ) -> Conditions | None:
        if self._fate is None:
            return None
        return self._fate.meet(message, start=start, within=within, number=number)

    def _seed(self, node_id: int, conditions: Conditions | None) -> int:
        """Return where a client's generators begin: the same in a run that is resumed."""
        self._launched += 1
        if conditions is None or conditions.number == 0:
            return derive_seed(self.run_id, "client", node_id, self._launched)
        return derive_seed(self.run_id, "timed client", node_id, conditions.number)

    def _context(self, node: FleetNode, state: RecordDict | None) -> Context:
        return Context(
            run_id=self.run_id,
            node_id=node.node_id,
            node_config=dict(node.node_config),
            state=RecordDict() if state is None else state,
            run_config=self._run_config,  # one object, so that a chunk carries it once
        )


def _state(launch: Launch) -> RecordDict:
    assert launch.outcome is not None
    return launch.outcome.state
