"""Flower's grid in one order, so that its bits can be compared."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid


class Ordered(Grid):
    """Flower's grid with nodes in the order of their partitions and replies in that of messages.

    Flower gives both in any order: node ids are random, and replies come as they are ready.
    Strategies draw positions in the list of nodes and add up floats, so that both orders are in
    the bits of their results.
    """

    def __init__(self, grid: Grid, nodes: Iterable[int]) -> None:
        self._grid = grid
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        messages = list(messages)
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        order = {message.metadata.message_id: place for place, message in enumerate(messages)}
        return sorted(replies, key=lambda reply: order[reply.metadata.reply_to_message_id])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def set_run(self, run):
        self._grid.set_run(run)

    @property
    def run(self):
        return self._grid.run

    def create_message(self, *arguments, **keywords):
        return self._grid.create_message(*arguments, **keywords)

    def get_nodes(self):
        return self._grid.get_nodes()
