"""A node as the server knows it: who it is, its session, what it may do and fetch. No gRPC here."""

import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mest_fed.link.messages import NodeDescription
from mest_fed.link.protocol import SESSION_BYTES, Refusal
from mest_fed.link.server.limits import SILENT_HEARTBEATS, Allowance, Limits
from mest_fed.link.server.objects import Blob
from mest_fed.link.server.tasks import Tasks

#: Sessions that were replaced, and objects of programs, that are known of each node.
_REMEMBERED, _PROGRAM_OBJECTS = 32, 16


@dataclass(frozen=True)
class Identity:
    """Who calls: what the certificate says.

    Parameters
    ----------
    fingerprint : bytes
        SHA-256 of the certificate.
    name : str
        Its common name.
    """

    fingerprint: bytes
    name: str

    @property
    def node_id(self) -> int:
        """Id of the node, below 2**63; it follows from the fingerprint."""
        return int.from_bytes(self.fingerprint[:8], "big") >> 1


@dataclass(frozen=True)
class NodeInfo:
    """A node that is registered.

    Parameters
    ----------
    id : int
        Its id.
    identity : Identity
        Its certificate.
    description : NodeDescription
        What it says of itself; nothing of it was checked but sizes and ranges.
    present : bool
        Whether it was heard lately.
    open : int
        Its instructions that have not ended.
    since : float
        When it registered last, by the server's clock.
    """

    id: int
    identity: Identity
    description: NodeDescription
    present: bool
    open: int
    since: float = 0.0


class Node:
    """A node of the book, which holds its lock while it asks one.

    Parameters
    ----------
    identity : Identity
        Its certificate.
    description : NodeDescription
        What it says of itself.
    tasks : Tasks
        What it is due.
    limits : Limits
        What it may do.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self,
        identity: Identity,
        description: NodeDescription,
        tasks: Tasks,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self.id, self.identity, self.description = identity.node_id, identity, description
        self.tasks = tasks
        self._limits, self._clock = limits, clock
        self.calls = Allowance(limits.calls_per_second, limits.call_burst, clock)
        self.programs = Allowance(limits.programs_per_second, limits.program_burst, clock)
        self.session, self.heard, self.since = b"", 0.0, 0.0
        self.replaced: deque[bytes] = deque(maxlen=_REMEMBERED)
        self.streams, self._silence_seen = 0, False
        self._program_objects: deque[Blob] = deque()

    def begin(self, description: NodeDescription) -> None:
        """Begin a session, and end the one before."""
        if self.session:
            self.replaced.append(self.session)
        self.session, self.description = secrets.token_bytes(SESSION_BYTES), description
        self.heard = self.since = self._clock()
        self.streams = 0

    def hear(self) -> None:
        """Note that it called."""
        self.heard, self._silence_seen = self._clock(), False

    def falls_silent(self) -> bool:
        """Say once, of each silence, that it is not heard though it has work."""
        silent = len(self.tasks) > 0 and not self.present
        new, self._silence_seen = silent and not self._silence_seen, silent
        return new

    @property
    def present(self) -> bool:
        """Whether it was heard lately."""
        longest = SILENT_HEARTBEATS * self._limits.heartbeat_seconds
        return self._clock() - self.heard <= longest

    @property
    def info(self) -> NodeInfo:
        """What others see of it."""
        tasks, since = len(self.tasks), self.since
        return NodeInfo(self.id, self.identity, self.description, self.present, tasks, since)

    def blob(self, sha256: bytes) -> Blob:
        """Return an object that it may fetch.

        Raises
        ------
        Refusal
            If neither its open instruction nor a program of it has this object.
        """
        for blob in (*self.tasks.blobs(), *self._program_objects):
            if blob.ref.sha256 == sha256:
                return blob
        raise Refusal("FAILED_PRECONDITION", "this object is not due to this node")

    def add_program(self, blobs: Mapping[str, Blob]) -> None:
        """Let it fetch what a program consists of, and no longer what others did long ago."""
        for blob in blobs.values():
            if blob not in self._program_objects:
                self._program_objects.append(blob)
        while len(self._program_objects) > max(_PROGRAM_OBJECTS, len(blobs)):
            self._program_objects.popleft()

    def begin_stream(self) -> None:
        """Count a transfer that begins; refuse it if there are too many."""
        if self.streams >= self._limits.streams:
            raise Refusal("RESOURCE_EXHAUSTED", f"{self.streams} transfers at the same time")
        self.streams += 1

    def end_stream(self, session: bytes) -> None:
        """Count a transfer of a session that ended; those of earlier sessions count no more."""
        if self.session == session:
            self.streams -= 1
