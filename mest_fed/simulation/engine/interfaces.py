"""What a grid asks of its surroundings: simulated devices, their states, the population."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from flwr.app import Message, RecordDict, UserConfigValue

from mest_fed.errors import not_allowed


@dataclass(frozen=True)
class TaskResult:
    """What came of an instruction on a device.

    Parameters
    ----------
    reply : Message
        What reaches the server: the client's reply, or an error reply.
    seconds : float
        Virtual seconds from the start of the instruction until the server has the reply, or knows
        that none will come.
    timing : object
        A record for the logs; picklable.
    keeps_state : bool
        Whether the device keeps what the client wrote into its state.
    busy_seconds : float
        Virtual seconds that the device works on it: more than ``seconds`` where the server did not
        wait for it. Until then its next instruction waits.
    """

    reply: Message
    seconds: float = 0.0
    timing: Any = None
    keeps_state: bool = True
    busy_seconds: float = 0.0


#: Receives an instruction that has ended, and its result.
TaskObserver = Callable[[Message, TaskResult], None]


class TaskConditions(Protocol):
    """The circumstances of one instruction on one device: small, picklable, without state.

    Attributes
    ----------
    refusal : str or None
        Why the device does not even begin, or None if it does.
    number : int
        Number of the instruction, from which its draws come.
    """

    @property
    def refusal(self) -> str | None:
        """See above."""

    @property
    def number(self) -> int:
        """See above."""

    def at_least(self, instruction: Message) -> float:
        """Return seconds that will pass at least."""

    def resolve(self, instruction: Message, reply: Message) -> TaskResult:
        """Return what comes of a reply; the same wherever, and whenever, it is asked.

        The reply to an instruction that was refused is an error reply with the reason.
        """


class DeviceSimulator(Protocol):
    """Draws the circumstances of each instruction, and keeps the virtual clock.

    Attributes
    ----------
    now : float
        Virtual seconds since the start of the run; the grid moves it.
    """

    now: float

    def draw_conditions(
        self, instruction: Message, *, start: float, within: float, number: int | None = None
    ) -> TaskConditions:
        """Draw the circumstances of an instruction.

        Parameters
        ----------
        instruction : Message
            To a node of the fleet.
        start : float
            Virtual time at which the device begins.
        within : float
            Seconds from ``start`` that the server waits at most; may be infinite.
        number : int, optional
            Number of an instruction that was met before, in a run that is resumed; by default the
            next one.
        """

    def record(self, task_result: TaskResult) -> None:
        """Learn what came of an instruction; called once for each, in message order."""


@runtime_checkable
class AvailabilitySimulator(Protocol):
    """What a simulator may know besides, for a server that selects by it."""

    def present_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return those nodes that are there now, in the order given."""

    def next_present(self, node_ids: Sequence[int]) -> float:
        """Return when the first of some absent nodes is worth asking again; may be infinite."""

    def train_seconds(self) -> Mapping[int, float]:
        """Return how long nodes took to train, as far as not logged yet."""


class States(Protocol):
    """States by node id."""

    def get(self, node_id: int) -> RecordDict | None:
        """Return a client's state; None if it has none. The caller does not edit it."""

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """Keep a client's state from now on; None forgets it."""


class DictStates(dict[int, RecordDict]):
    """States in this process's memory."""

    def put(self, node_id: int, state: RecordDict | None) -> None:
        """See :class:`States`."""
        if state:
            self[node_id] = state
        else:
            self.pop(node_id, None)


#: Node id of partition 0. Flower keeps 0 for "no node" and 1 for its SuperLink.
FIRST_NODE_ID = 1000


@dataclass(frozen=True)
class FleetNode:
    """A node: its id and the configuration that its client sees.

    Parameters
    ----------
    node_id : int
        Id that messages are sent to.
    node_config : mapping of str to scalar
        Holds at least ``partition-id`` and ``num-partitions``, as in every Flower simulation.
    cost : float
        How long its client takes, compared with others: the longest run first.
    memory : int
        Bytes that its client needs beside those of its process.
    """

    node_id: int
    node_config: Mapping[str, UserConfigValue]
    cost: float = 1.0
    memory: int = 0


@dataclass(frozen=True)
class NodeKind:
    """What alike nodes have in common: see :class:`FleetNode`; ``config`` is all but partitions."""

    config: Mapping[str, UserConfigValue] = field(default_factory=dict)
    cost: float = 1.0
    memory: int = 0


class Population(Protocol):
    """The nodes that a grid can send to.

    Their ids are a range in the order of the partitions, so that a server can draw nodes without
    asking all of them which partition they hold.
    """

    @property
    def node_ids(self) -> range:
        """Ids of all nodes."""

    def __contains__(self, node_id: object) -> bool:
        """Say whether there is such a node."""

    def __getitem__(self, node_id: int) -> FleetNode:
        """Return a node."""


@dataclass(frozen=True)
class Nodes:
    """A population that makes a node when it is asked for; see :func:`make_nodes`."""

    num_partitions: int
    kind_of: Callable[[int], NodeKind]

    @property
    def node_ids(self) -> range:
        """Ids of all nodes, in the order of the partitions."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self.num_partitions)

    def __contains__(self, node_id: object) -> bool:
        """Say whether there is such a node."""
        return node_id in self.node_ids

    def __getitem__(self, node_id: int) -> FleetNode:
        """Return a node; KeyError if there is no such one."""
        if node_id not in self:
            raise KeyError(node_id)
        partition = partition_of(node_id)
        kind = self.kind_of(partition)
        place = {"partition-id": partition, "num-partitions": self.num_partitions}
        return FleetNode(node_id, {**kind.config, **place}, kind.cost, kind.memory)


def make_nodes(num_partitions: int, kind_of: Callable[[int], NodeKind] | None = None) -> Nodes:
    """Return a population of one node for each partition.

    Parameters
    ----------
    num_partitions : int
        How many nodes; at least 1.
    kind_of : callable, optional
        Partition -> what its node has beside its place, for example its memory budget.

    Raises
    ------
    InputError
        If there is no node.
    """
    if num_partitions < 1:
        raise not_allowed("num_partitions", num_partitions, "a whole number from 1")
    plain = NodeKind()
    return Nodes(num_partitions, kind_of or (lambda _: plain))


def node_id_of(partition_id: int) -> int:
    """Return the id of the node that holds a partition: the same in every run."""
    return FIRST_NODE_ID + partition_id


def partition_of(node_id: int) -> int:
    """Return the partition that a node holds."""
    return node_id - FIRST_NODE_ID
