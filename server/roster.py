"""The nodes of the fleet: who they are, what they can do, which mask each of them knows."""

from collections.abc import Iterable
from dataclasses import dataclass
from logging import getLogger
from time import sleep

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from mest_fed.errors import MestFedError
from mest_fed.rng import numpy_generator

log = getLogger(__name__)

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """One node's answer to the capability query.

    Parameters
    ----------
    node_id : int
        Flower's id, random in most engines; order nodes by ``partition``.
    partition : int
        Its share of the data.
    device : str
        Profile name.
    budget : int
        Memory budget in bytes.
    density : float
        Density of its plan.
    micro_batch : int
        Micro-batch of its plan.
    predicted_peak : int
        Modelled bytes of its plan.
    examples, held_out : int
        Numbers of its training and evaluation examples.
    """

    node_id: int
    partition: int
    device: str
    budget: int
    density: float
    micro_batch: int
    predicted_peak: int
    examples: int
    held_out: int


class Roster:
    """Knows the nodes of a grid, and keeps knowing which mask each of them has.

    Parameters
    ----------
    densities : iterable of float
        The densities that a plan may have; a node that claims another is left out.
    """

    def __init__(self, densities: Iterable[float]) -> None:
        self.densities = tuple(densities)
        self.nodes: dict[int, Node] = {}
        self.known_mask: dict[int, bytes] = {}
        self._refused: set[int] = set()

    def refresh(self, grid: Grid, min_nodes: int) -> None:
        """Query nodes that are new; wait until ``min_nodes`` are there."""
        while True:
            present = set(grid.get_node_ids())
            self.nodes = {i: node for i, node in self.nodes.items() if i in present}
            new = sorted(present - self.nodes.keys() - self._refused)
            if new:
                self._query(grid, new)
            if len(self.nodes) >= min_nodes:
                return
            if present and present <= self._refused:
                raise MestFedError("every node refused to take part; see the log for their reasons")
            log.info("waiting for nodes: %d of %d", len(self.nodes), min_nodes)
            sleep(_POLL_SECONDS)

    def sample(self, count: int, *path: int | str) -> list[Node]:
        """Draw up to ``count`` nodes, the same for the same path whatever their ids."""
        node_ids = self.node_ids()
        seed, *rest = path
        chosen = numpy_generator(int(seed), *rest).permutation(len(node_ids))[:count]
        return self.take(node_ids[place] for place in chosen)

    def node_ids(self) -> list[int]:
        """Return all nodes in the order of their partitions, for who selects among them."""
        ordered = sorted(self.nodes.values(), key=lambda node: (node.partition, node.node_id))
        return [node.node_id for node in ordered]

    def take(self, node_ids: Iterable[int]) -> list[Node]:
        """Return these nodes, in the order of their partitions."""
        nodes = (self.nodes[node_id] for node_id in node_ids)
        return sorted(nodes, key=lambda node: (node.partition, node.node_id))

    def by_partition(self) -> dict[int, Node]:
        """Return the nodes by partition."""
        return {node.partition: node for node in self.nodes.values()}

    def _query(self, grid: Grid, node_ids: list[int]) -> None:
        messages = [
            Message(
                content=RecordDict({"query": ConfigRecord({"version": 1})}),
                message_type=MessageType.QUERY,
                dst_node_id=node_id,
            )
            for node_id in node_ids
        ]
        for reply in grid.send_and_receive(messages):
            node_id = reply.metadata.src_node_id
            try:
                self.nodes[node_id] = self._node(reply)
            except (KeyError, TypeError, ValueError, OverflowError, MestFedError) as error:
                self._refused.add(node_id)
                log.warning("node %d does not take part: %s", node_id, error)

    def _node(self, reply: Message) -> Node:
        if reply.has_error():
            raise MestFedError(reply.error.reason)
        record = reply.content.config_records["capability"]
        node = Node(
            node_id=reply.metadata.src_node_id,
            partition=int(record["partition"]),
            device=str(record["device"]),
            budget=int(record["budget"]),
            density=float(record["density"]),
            micro_batch=int(record["micro-batch"]),
            predicted_peak=int(record["predicted-peak"]),
            examples=int(record["examples"]),
            held_out=int(record["held-out"]),
        )
        if not any(abs(node.density - allowed) < 1e-12 for allowed in self.densities):
            raise MestFedError(f"it claims density {node.density}; allowed: {self.densities}")
        if node.examples < 1:
            raise MestFedError("it has no training examples")
        return node
