"""Instructions on their way: what the server must remember of them until their replies arrive."""

from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict

from mest_fed.nn import SparseState
from server.roster import Node


@dataclass(frozen=True)
class Flight:
    """An instruction to train whose reply is awaited.

    What is sent to many is one object in all their flights, and goes when the last of them lands.

    Parameters
    ----------
    node : Node
        Who trains.
    round : int
        The round in which it was sent; the model is that at the end of the round before.
    started : float
        When it was sent.
    content : RecordDict
        Of the message.
    sent : SparseState
        The model as the node decodes it: its update is a difference to this.
    bytes_down : int
        Bytes of the content.
    """

    node: Node
    round: int
    started: float
    content: RecordDict
    sent: SparseState
    bytes_down: int

    def message(self) -> Message:
        """Return the message, as it is sent again by a run that is resumed."""
        return Message(
            content=self.content,
            message_type=MessageType.TRAIN,
            dst_node_id=self.node.node_id,
        )
