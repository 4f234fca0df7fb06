"""The simulated devices of a fleet, as Flower nodes. A node costs nothing until it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import UserConfigValue

from mest_fed.errors import not_allowed

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
