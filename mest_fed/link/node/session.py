"""A node's session with a server: registering, also again; calls by it; the heartbeat."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from mest_fed.errors import BudgetError, InputError, MestFedError, RefusedError, WireError
from mest_fed.link import codec
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import NodeDescription, Registration
from mest_fed.link.node.channel import Channel
from mest_fed.link.protocol import VERSION, Refusal

Result = TypeVar("Result")

#: Seconds that leaving may take.
_LEAVE_SECONDS = 2.0
#: Seconds that the first attempt to register may take, before certificates are looked at.
_FIRST_SECONDS = 5.0


class InstructionOverError(MestFedError):
    """The instruction has ended on the server: its deadline passed, or it was withdrawn."""


class ReportedError(MestFedError):
    """The instruction was reported before."""


class Session:
    """A node's session, and those that follow it; a thread tells the server that the node is alive.

    Parameters
    ----------
    channel : Channel
        The connection.
    node : NodeDescription
        What the node says of itself.
    begun : callable
        Called when a session begins.
    """

    def __init__(self, channel: Channel, node: NodeDescription, begun: Callable[[], None]) -> None:
        self._channel, self._node, self._begun = channel, node, begun
        self._registering = threading.Lock()
        self._registration: Registration | None = None
        self._working_on, self._over = "", threading.Event()
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="mest-heartbeat", daemon=True)

    def register(self, node: NodeDescription | None = None) -> Registration:
        """Begin a session; see :meth:`mest_fed.link.node.transport.NodeLink.register`."""
        if node is not None:
            self._node = node
        try:
            registration = self.call(self._begin)
        except WireError as error:
            raise InputError(str(error)) from None
        if not self._heart.is_alive():
            self._heart.start()
        return registration

    def leave(self) -> None:
        """End the session, and with it what is due to the node."""
        if self._registration is not None:
            request = pb.LeaveRequest(session=self.id)
            with suppress(Refusal):
                self._channel.unary("Leave", request, seconds=_LEAVE_SECONDS)
        with self._registering:
            self._registration = None

    def stop(self) -> None:
        """Have the thread end, at the latest when its call does."""
        self._closed.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._heart.is_alive():
            self._heart.join()

    @property
    def registration(self) -> Registration:
        """What the server said last.

        Raises
        ------
        RefusedError
            If the node has not registered.
        """
        if self._registration is None:
            raise RefusedError("the node has not registered")
        return self._registration

    @property
    def id(self) -> bytes:
        """What names the session in calls."""
        return self.registration.session

    @property
    def working_on(self) -> str:
        """Id of the instruction that the node works on; empty if it has none."""
        return self._working_on

    @property
    def over(self) -> bool:
        """Whether the instruction that was worked on last has ended on the server."""
        return self._over.is_set()

    def work_on(self, instruction: str) -> None:
        """Note which instruction the server is told of from now on."""
        self._working_on = instruction
        self._over.clear()

    def work_ended(self) -> None:
        """Note that the node works on no instruction."""
        self._working_on = ""
        self._over.set()

    def call(self, call: Callable[[], Result], *, progress: Callable[[], int] = int) -> Result:
        """Make a call until it is answered; register again where the session is not known.

        Parameters
        ----------
        call : callable
            Makes it once, by whatever session is the node's then.
        progress : callable, optional
            Returns how far a transfer has come.

        Raises
        ------
        MestFedError
            What the server answers, as an error of its own kind.
        """

        def once() -> Result:
            registration = self._registration
            try:
                return call()
            except Refusal as refusal:
                if refusal.code != "NOT_FOUND" or registration is None:
                    raise
            self._register(registration)
            return call()

        try:
            found = self._channel.insist(once, progress=progress)
        except Refusal as refusal:
            raise _error_of(refusal) from None
        self._heard = time.monotonic()
        return found

    def _begin(self) -> Registration:
        first = self._registration is None and not self._heart.is_alive()
        try:
            # gRPC may try for as long as it may: a server that does not take the node says nothing.
            return self._register(None, _FIRST_SECONDS if first else None)
        except Refusal as refusal:
            # Later on, an operator may be about to renew a certificate.
            broken = refusal.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            if first and broken:
                self._channel.refuse_tls_fault()
            raise

    def _register(self, stale: Registration | None, seconds: float | None = None) -> Registration:
        with self._registering:
            if self._registration is None and stale is not None:
                raise Refusal("CANCELLED", "the node has left")
            if self._registration is stale or stale is None:
                request = codec.write_registration_request(self._node, VERSION)
                reply = self._channel.unary("Register", request, seconds=seconds)
                self._registration = codec.read_registration(reply)
                self._begun()
            return self.registration

    def _beat(self) -> None:
        while not self._closed.wait(self._until_beat()):
            registration = self._registration
            if registration is None or self._until_beat() > 0:
                continue
            working_on = self._working_on
            self._heard = time.monotonic()
            try:
                request = pb.HeartbeatRequest(session=registration.session, instruction=working_on)
                still_open = self._channel.unary("Heartbeat", request).open
            except Refusal as refusal:
                still_open = refusal.code != "ABORTED"
                if refusal.code == "NOT_FOUND":
                    with suppress(Refusal):
                        self._register(registration)
            if working_on and working_on == self._working_on and not still_open:
                self._over.set()

    def _until_beat(self) -> float:
        registration = self._registration
        if registration is None:  # it has left
            return _LEAVE_SECONDS
        return max(0.0, self._heard + registration.heartbeat_seconds - time.monotonic())


def _error_of(refusal: Refusal) -> MestFedError:
    if refusal.needs:
        return BudgetError(str(refusal), refusal.needs)
    kinds: dict[str, type[MestFedError]] = {
        "FAILED_PRECONDITION": InstructionOverError,
        "ALREADY_EXISTS": ReportedError,
        "INVALID_ARGUMENT": WireError,
        "DATA_LOSS": WireError,
        "OUT_OF_RANGE": WireError,
    }
    return kinds.get(refusal.code, RefusedError)(str(refusal) or refusal.code)
