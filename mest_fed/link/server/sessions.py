"""The book of nodes: who is registered, what each is due, and how it ended. No gRPC here.

All methods may be called from any thread. A call of a node's names its identity, which its
certificate gives, and its session, which it was told: both must belong together.

An instruction waits in its node's queue, is *given* when the node asks what is due, and ends once:
by a report, its deadline, its withdrawal, or the node's absence. The first in the queue is the one
that is due, until it has ended: that is how a node that crashed gets it again.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from mest_fed.errors import not_allowed
from mest_fed.link.messages import Bytes, Instruction, NodeDescription, ObjectRef, Outcome, Report
from mest_fed.link.protocol import Refusal
from mest_fed.link.server.limits import Limits
from mest_fed.link.server.nodes import Identity, Node, NodeInfo
from mest_fed.link.server.objects import Blob, ObjectStore, Room, Upload
from mest_fed.link.server.tasks import Tasks
from mest_fed.schema import FailureKind
from mest_fed.units import format_seconds

log = logging.getLogger("mest_fed.link")

_TAKEN_OVER = (
    "another process took part with this certificate (without TLS: this name) since; give each "
    "node its own"
)


class Book:
    """The nodes of a server.

    Parameters
    ----------
    limits : Limits
        Bounds of everything that nodes can make it hold.
    admit : callable, optional
        Says whether an identity takes part, whenever it calls. By default all do that have a
        certificate.
    clock : callable, optional
        Returns seconds.
    """

    def __init__(
        self,
        limits: Limits,
        admit: Callable[[Identity], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self._admit, self._clock = limits, admit, clock
        #: Called with a node's id when something is due to it, or its session has ended.
        self.on_due: Callable[[int], None] = lambda _: None
        self._lock = threading.RLock()
        self._ended = threading.Condition(self._lock)
        self._nodes: dict[int, Node] = {}
        self._sessions: dict[bytes, Node] = {}
        self._outcomes: deque[Outcome] = deque()
        self.objects = ObjectStore()
        self.room = Room(limits.node_bytes, limits.total_bytes)

    # What nodes do.

    def register(self, identity: Identity, description: NodeDescription) -> bytes:
        """Begin a session, and end the one that the identity had.

        Raises
        ------
        Refusal
            If the identity is not admitted, or there are too many nodes.
        """
        self._check_admitted(identity)
        with self._lock:
            node = self._nodes.get(identity.node_id)
            if node is None:
                node = self._add(identity, description)
            elif node.identity != identity:
                raise Refusal("PERMISSION_DENIED", "another certificate has this node id")
            node.calls.spend("calls")
            self._sessions.pop(node.session, None)
            node.begin(description)
            self._sessions[node.session] = node
        self.on_due(identity.node_id)
        return node.session

    def check(self, identity: Identity, session: bytes, *, counts: bool = True) -> NodeInfo:
        """Return the node of a session.

        Parameters
        ----------
        counts : bool
            Whether this is a call, of which a node may make so many a second.

        Raises
        ------
        Refusal
            If the identity is not admitted, the session is not known, is another identity's, or was
            ended by another registration; or if there are too many calls.
        """
        self._check_admitted(identity)
        with self._lock:
            node = self._node(identity, session)
            if counts:
                node.calls.spend("calls")
            node.hear()
            return node.info

    def due(self, identity: Identity, session: bytes, last_seen: str) -> Instruction | None:
        """Give the node its open instruction, unless it is the one that it has."""
        with self._lock:
            node = self._node(identity, session)
            return node.tasks.due(last_seen)

    def is_open(self, identity: Identity, session: bytes, instruction: str) -> bool:
        """Say whether the node's instruction is one that it still should work on."""
        with self._lock:
            return self._node(identity, session).tasks.is_open(instruction)

    def blob(self, identity: Identity, session: bytes, sha256: bytes) -> Blob:
        """Return an object that the node may fetch.

        Raises
        ------
        Refusal
            If neither its open instruction nor a program of it has this object.
        """
        with self._lock:
            return self._node(identity, session).blob(sha256)

    def add_program(self, identity: Identity, session: bytes, blobs: Mapping[str, Blob]) -> None:
        """Let the node fetch what a program consists of."""
        with self._lock:
            self._node(identity, session).add_program(blobs)

    def spend_program(self, identity: Identity, session: bytes) -> None:
        """Count a request for a program; refuse it if there were too many."""
        with self._lock:
            self._node(identity, session).programs.spend("requests for programs")

    def begin_stream(self, identity: Identity, session: bytes) -> Callable[[], None]:
        """Count a transfer of the node that begins; return what to call at its end."""
        with self._lock:
            node = self._node(identity, session)
            node.begin_stream()
        return lambda: self._end_stream(node, session)

    def received(self, identity: Identity, session: bytes, instruction: str, sha256: bytes) -> int:
        """Return how much of an upload is here."""
        with self._lock:
            return self._node(identity, session).tasks.given(instruction).uploads.received(sha256)

    def begin_upload(
        self, identity: Identity, session: bytes, instruction: str, ref: ObjectRef, *, offset: int
    ) -> Upload:
        """Begin an upload, or go on with it; see :meth:`Uploads.begin`."""
        with self._lock:
            task = self._node(identity, session).tasks.given(instruction)
            return task.uploads.begin(ref, offset)

    def append(
        self, node_id: int, instruction: str, upload: Upload, data: bytes, *, at: int
    ) -> int:
        """Append to an upload that :meth:`begin_upload` returned; see :meth:`Uploads.append`."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is None:
                raise Refusal("NOT_FOUND", "this session is not known")
            node.hear()
            return node.tasks.given(instruction).uploads.append(upload, at, data)

    def report(self, identity: Identity, session: bytes, report: Report) -> None:
        """End an instruction by the node's report.

        Raises
        ------
        Refusal
            If it is not open, was not given to the node, or an object was not uploaded.
        """
        with self._lock:
            self._node(identity, session).tasks.report(report)

    def leave(self, identity: Identity, session: bytes) -> None:
        """End a session; the node's instructions end as failures."""
        with self._lock:
            self._forget(self._node(identity, session), "the node left")

    # What the server does.

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that are registered and present, by id."""
        with self._lock:
            found = [self._nodes[each].info for each in sorted(self._nodes)]
            return [each for each in found if each.present]

    def submit(
        self, node_id: int, instruction: Instruction, objects: Mapping[str, Blob | Bytes]
    ) -> None:
        """Put an instruction into a node's queue; its end is one of :meth:`take_outcomes`.

        If there is no such node, or its queue is full, the instruction has ended at once.

        Parameters
        ----------
        node_id : int
            The node.
        instruction : Instruction
            Without objects. Its deadline counts from now.
        objects : mapping of str to Blob or bytes
            What the node fetches; a :class:`Blob` for many nodes is hashed once.

        Raises
        ------
        InputError
            If the id stands in the queue already.
        """
        blobs = {k: v if isinstance(v, Blob) else Blob(v) for k, v in objects.items()}
        refs = {name: blob.ref for name, blob in blobs.items()}
        instruction = replace(instruction, objects=refs)
        with self._lock:
            node = self._nodes.get(node_id)
            if node is not None and node.tasks.is_open(instruction.id):
                raise not_allowed("id", instruction.id, "an id that the node's queue does not hold")
            if node is None or not node.present:
                self._refuse(node_id, instruction, FailureKind.AWAY)
            elif len(node.tasks) >= self.limits.queue:
                self._refuse(node_id, instruction, FailureKind.BUSY)
            else:
                node.tasks.add(instruction, blobs)
        self.on_due(node_id)

    def withdraw(self, node_id: int, instruction: str) -> None:
        """End an instruction that is no longer wanted; nothing happens if it has ended."""
        with self._lock:
            node = self._nodes.get(node_id)
            if node is not None:
                node.tasks.withdraw(instruction)

    def take_outcomes(self, timeout: float = 0.0) -> list[Outcome]:
        """Return what has ended since the last time; wait for the first if there is none yet."""
        with self._lock:
            self._ended.wait_for(lambda: self._outcomes, timeout)
            found = list(self._outcomes)
            self._outcomes.clear()
            for each in found:
                self.room.give_back(each.node_id, _room_of(each.objects))
            return found

    def expire(self) -> None:
        """End what is over: instructions past their deadline, nodes long silent."""
        with self._lock:
            oldest = self._clock() - self.limits.gone_seconds
            for node in list(self._nodes.values()):
                if node.heard < oldest:
                    self._forget(node, "the node fell silent")
                    continue
                node.tasks.expire()
                if node.falls_silent():
                    silent, left = self._clock() - node.heard, node.heard - oldest
                    text = "%s is silent for %s in the midst of its work: it is awaited for %s more"
                    log.info(text, node.identity.name, format_seconds(silent), format_seconds(left))

    def _add(self, identity: Identity, description: NodeDescription) -> Node:
        if len(self._nodes) >= self.limits.nodes:
            raise Refusal("RESOURCE_EXHAUSTED", f"there are {self.limits.nodes} nodes")
        tasks = Tasks(identity.node_id, self, self._clock)
        node = Node(identity, description, tasks, self.limits, self._clock)
        self._nodes[node.id] = node
        return node

    def _forget(self, node: Node, reason: str) -> None:
        node.tasks.end_all(FailureKind.WENT_AWAY, reason)
        self._sessions.pop(node.session, None)
        del self._nodes[node.id]
        self.on_due(node.id)

    def _check_admitted(self, identity: Identity) -> None:
        if not self._admit(identity):
            with self._lock:
                node = self._nodes.get(identity.node_id)
                if node is not None and node.identity == identity:
                    self._forget(node, "its certificate is no longer admitted")
            raise Refusal("PERMISSION_DENIED", "this certificate is not admitted")

    def _node(self, identity: Identity, session: bytes) -> Node:
        node = self._sessions.get(session)
        if node is not None and node.identity == identity:
            return node
        if node is not None:
            raise Refusal("PERMISSION_DENIED", "this session is another certificate's")
        own = self._nodes.get(identity.node_id)
        if own is not None and own.identity == identity and session in own.replaced:
            raise Refusal("ABORTED", _TAKEN_OVER)
        raise Refusal("NOT_FOUND", "this session is not known")

    def _end_stream(self, node: Node, session: bytes) -> None:
        with self._lock:
            node.end_stream(session)

    def _refuse(self, node_id: int, instruction: Instruction, failure: FailureKind) -> None:
        self.ended(Outcome(node_id, instruction, 0.0, failure, failure.label))

    def ended(self, outcome: Outcome) -> None:
        """Keep what came of an instruction until it is taken."""
        self._outcomes.append(outcome)
        self._ended.notify_all()
        self.on_due(outcome.node_id)


def _room_of(objects: Mapping[str, Bytes]) -> int:
    """Return the bytes of objects, each of which counts once under whatever names it stands."""
    return sum(len(data) for data in {id(data): data for data in objects.values()}.values())
