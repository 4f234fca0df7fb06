"""The simulated devices of a fleet, as Flower nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import UserConfigValue

from mest_fed.errors import InputError, not_allowed

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


def node_id_of(partition_id: int) -> int:
    """Return the id of the node that holds a partition: the same in every run."""
    return FIRST_NODE_ID + partition_id


def make_nodes(
    num_partitions: int, extras: Sequence[Mapping[str, UserConfigValue]] | None = None
) -> list[FleetNode]:
    """Make one node for each partition, in the order of the partitions.

    Parameters
    ----------
    num_partitions : int
        How many nodes; at least 1.
    extras : sequence of mappings, optional
        Further configuration of each node, for example its memory budget.

    Raises
    ------
    InputError
        If there is no node, or not one entry of ``extras`` for each.
    """
    if num_partitions < 1:
        raise not_allowed("num_partitions", num_partitions, "a whole number from 1")
    if extras is None:
        extras = [{}] * num_partitions
    if len(extras) != num_partitions:
        raise InputError(f"{len(extras)} node configurations for {num_partitions} nodes")
    return [
        FleetNode(
            node_id_of(partition),
            {**extra, "partition-id": partition, "num-partitions": num_partitions},
        )
        for partition, extra in enumerate(extras)
    ]
