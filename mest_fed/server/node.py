"""A node: what a grid knows of it, and what it says of itself when it is asked."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from mest_fed.errors import MestFedError


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
    frozen : int
        Segments at the start of the model that its plan does not train.
    name : str
        What its grid calls it; empty where ids are all there is.
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
    frozen: int = 0
    name: str = ""

    @property
    def label(self) -> str:
        """What people read of it: its name, or else its id and share of the data."""
        return self.name or f"{self.node_id} (partition {self.partition})"


def query_messages(node_ids: Iterable[int]) -> list[Message]:
    """Return a message for each node that asks who it is."""
    content = RecordDict({"query": ConfigRecord({"version": 1})})
    return [
        Message(content=content, message_type=MessageType.QUERY, dst_node_id=node_id)
        for node_id in node_ids
    ]


def read_node(node_id: int, reply: Message, name: str, densities: Collection[float]) -> Node:
    """Return the node that answered.

    Parameters
    ----------
    node_id : int
        Flower's id.
    reply : Message
        To a message of :func:`query_messages`.
    name : str
        What its grid calls it; empty where ids are all there is.
    densities : collection of float
        The densities that a plan may have.

    Raises
    ------
    MestFedError
        If it cannot take part.
    KeyError, TypeError, ValueError, OverflowError
        If the reply says something else than who it is.
    """
    if reply.has_error():
        raise MestFedError(reply.error.reason)
    record = reply.content.config_records["capability"]
    node = Node(
        node_id=node_id,
        partition=int(record["partition"]),
        device=str(record["device"]),
        budget=int(record["budget"]),
        density=float(record["density"]),
        micro_batch=int(record["micro-batch"]),
        predicted_peak=int(record["predicted-peak"]),
        examples=int(record["examples"]),
        held_out=int(record["held-out"]),
        frozen=int(record.get("frozen", 0)),  # a node of an earlier version does not say
        name=name,
    )
    if not any(abs(node.density - allowed) < 1e-12 for allowed in densities):
        raise MestFedError(f"it claims density {node.density}; allowed: {densities}")
    if node.examples < 1:
        raise MestFedError("it has no training examples")
    if node.frozen < 0:
        raise MestFedError(f"it claims to freeze {node.frozen} segments; allowed: from 0")
    return node


@runtime_checkable
class KnowsActivations(Protocol):
    """What a grid offers if it knows since when its nodes are there, as Flower's own does."""

    def get_nodes(self) -> Iterable[Any]:
        """Return the nodes that are there, each with ``node_id`` and ``last_activated_at``.

        One that has a name for people has it as ``name``.
        """


def seen_nodes(grid: Grid, node_ids: Iterable[int]) -> tuple[dict[int, str], dict[int, str]]:
    """Return since when each node is there, and what it is called, as far as the grid knows."""
    if not isinstance(grid, KnowsActivations):
        return dict.fromkeys(node_ids, ""), {}
    nodes = list(grid.get_nodes())
    since = {info.node_id: info.last_activated_at for info in nodes}
    return since, {info.node_id: getattr(info, "name", "") for info in nodes}
