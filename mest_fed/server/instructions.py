"""Instructions to nodes: the model for each of them, and which reply answers which instruction."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger

from flwr.app import Message

from mest_fed.schema import FailureKind
from mest_fed.server.client_registry import ClientRegistry
from mest_fed.server.exchange import Awaited
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.model_broadcast import ModelBroadcast
from mest_fed.server.node import Node
from mest_fed.server.round_record import ClientOutcome
from mest_fed.wire.records import content_bytes

log = getLogger(__name__)


@dataclass(frozen=True)
class SentTask:
    """An instruction that was sent.

    Parameters
    ----------
    node : Node
        To whom.
    bytes_down : int
        Bytes of its content.
    """

    node: Node
    bytes_down: int

    def outcome(self) -> ClientOutcome:
        """Return the outcome of its node, of which only what it was sent is known yet."""
        node = self.node
        return ClientOutcome(node.node_id, node.partition, node.device, bytes_down=self.bytes_down)

    def unanswered(self, failure: FailureKind = FailureKind.NO_REPLY) -> ClientOutcome:
        """Return what became of its node where the round takes no reply of it."""
        outcome = self.outcome()
        outcome.fail(failure, "no reply")
        return outcome


class Instructions:
    """The instructions of one exchange at a time: those of training, then those of evaluation.

    Parameters
    ----------
    clients : ClientRegistry
        Knows which masks each node holds.
    broadcast : ModelBroadcast
        Encodes the model for them.

    Attributes
    ----------
    sent : list of SentTask
        Those that were made last, in the order of their messages.
    """

    def __init__(self, clients: ClientRegistry, broadcast: ModelBroadcast) -> None:
        self._clients, self._broadcast = clients, broadcast
        self.sent: list[SentTask] = []
        self._awaited = Awaited[SentTask]()

    def messages(
        self,
        model: GlobalModel,
        nodes: Iterable[Node],
        order: Mapping[str, int | bool],
        message_type: str,
    ) -> list[Message]:
        """Return a message for each node, whose replies are awaited from now on, and no others.

        Parameters
        ----------
        model : GlobalModel
            What to send: to each node its tier of it.
        nodes : iterable of Node
            To whom.
        order : mapping of str to int or bool
            What they should do.
        message_type : str
            For example ``train``.
        """
        messages = []
        self.sent = []
        for node in nodes:
            # Until it answers, the server does not know which mask set it holds.
            known = self._clients.known_mask.pop(node.node_id, b"")
            content = self._broadcast.content(model, node.density, known, order)
            self.sent.append(SentTask(node, content_bytes(content)))
            messages.append(
                Message(content=content, message_type=message_type, dst_node_id=node.node_id)
            )
        self._awaited = Awaited(zip(messages, self.sent, strict=True))
        return messages

    def matched(self, replies: Iterable[Message]) -> Iterator[tuple[SentTask, Message]]:
        """Yield each reply with the instruction that it answers; drop others and repetitions."""
        for reply in replies:
            sent = self._awaited.take(reply)
            if sent is None:
                log.warning("a reply was dropped: it answers no instruction that is awaited")
            else:
                yield sent, reply

    def rest(self) -> list[SentTask]:
        """Return the instructions that have no reply."""
        return self._awaited.rest()

    def forget(self) -> None:
        """Await no reply any more."""
        self._awaited = Awaited()

    def note_mask(self, node: Node) -> None:
        """Note that a node that answered has decoded, and kept, the mask set that it was sent."""
        self._clients.known_mask[node.node_id] = self._broadcast.tier_hash(node.density)
