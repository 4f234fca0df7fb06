"""NodeLink: the node side of the edge link.

It needs gRPC and the protocol's generated code: no torch, no Flower. A node does, in one thread::

    with NodeLink("server:9443", NodeDescription("pi-7"), tls=tls) as link:
        registration = link.register()
        while True:
            instruction = link.wait()
            if instruction is not None:
                weights = link.fetch(instruction.objects["weights"])
                ...
                link.report(instruction, {"update": update}, {"loss": 0.3}, seconds=12.5)

Calls are made again when the connection breaks, and a node registers again when the server was
started anew. A second thread tells the server that the node is alive while it works.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from mest_fed.errors import InputError, MestFedError, RefusedError, WireError
from mest_fed.link import codec
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import (
    VERSION,
    Bytes,
    Instruction,
    Metric,
    NodeDescription,
    ObjectRef,
    ProgramRequest,
    Refusal,
    Registration,
    Report,
    as_reason,
)
from mest_fed.link.node.channel import Channel, Patience
from mest_fed.link.node.enrolling import enrol
from mest_fed.link.node.tls import NodeTls
from mest_fed.link.node.transfers import Transfers
from mest_fed.schema import FailureKind

__all__ = [
    "InstructionOverError",
    "NodeDescription",
    "NodeLink",
    "NodeTls",
    "Patience",
    "enrol",
]

Result = TypeVar("Result")

#: Seconds that a program may take to be built, and that leaving may take.
_BUILD_SECONDS, _LEAVE_SECONDS = 120.0, 2.0
#: Seconds that the first attempt to register may take, before certificates are looked at.
_FIRST_SECONDS = 5.0
_MOST_OBJECT_BYTES = 1 << 30


class InstructionOverError(MestFedError):
    """The instruction has ended on the server: its deadline passed, or it was withdrawn."""


class NodeLink:
    """A node's session with a server.

    Parameters
    ----------
    address : str
        ``host:port`` of the server.
    node : NodeDescription
        What the node says of itself.
    tls : NodeTls, optional
        Certificates.
    insecure : bool
        True instead of ``tls``, on loopback alone.
    patience : Patience, optional
        How long calls are tried; by default for ever.
    most_object_bytes : int
        Objects that are larger are not fetched.

    Raises
    ------
    InputError
        If the address cannot be used, or there are neither certificates nor ``insecure``.
    """

    def __init__(
        self,
        address: str,
        node: NodeDescription,
        *,
        tls: NodeTls | None = None,
        insecure: bool = False,
        patience: Patience | None = None,
        most_object_bytes: int = _MOST_OBJECT_BYTES,
    ) -> None:
        if (tls is None) != insecure:
            raise InputError("an edge link needs certificates, or insecure = true on loopback")
        self._node, self._most_object_bytes = node, most_object_bytes
        self._channel = Channel(address, node.name, tls=tls, patience=patience or Patience())
        self._transfers = Transfers(self._channel, lambda: self.registration, self._calling)
        self._unbuilt: dict[ProgramRequest, str] = {}
        self._registering = threading.Lock()
        self._registration: Registration | None = None
        self._working_on, self._over = "", threading.Event()
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="mest-heartbeat", daemon=True)

    def register(self, node: NodeDescription | None = None) -> Registration:
        """Begin a session.

        Parameters
        ----------
        node : NodeDescription, optional
            What the node says of itself from now on.

        Raises
        ------
        RefusedError
            If the server does not take this node.
        InputError
            If the run cannot be this node's, as when its budget fits no plan; or at the first time
            if a certificate is wrong.
        """
        if node is not None:
            self._node = node
        try:
            registration = self._calling(self._begin)
        except WireError as error:
            raise InputError(str(error)) from None
        if not self._heart.is_alive():
            self._heart.start()
        return registration

    def leave(self) -> None:
        """End the session, and with it what is due to the node; :meth:`register` begins another."""
        if self._registration is not None:
            request = pb.LeaveRequest(session=self._session)
            with suppress(Refusal):
                self._channel.unary("Leave", request, seconds=_LEAVE_SECONDS)
        with self._registering:
            self._registration = None

    def wait(self) -> Instruction | None:
        """Return the next instruction; None if the server has none for as long as it waits.

        An instruction is over, for this node, when it waits for the next.

        Raises
        ------
        RefusedError
            If the session is over: the certificate registered elsewhere, or is no longer admitted.
        WireError
            If the server sends what is no instruction.
        """
        if self._over.is_set():
            self._working_on = ""

        def once() -> Instruction | None:
            held = self.registration.wait_seconds
            request = pb.WaitRequest(session=self._session, last_seen=self._working_on)
            work = self._channel.unary("Wait", request, held=held)
            if not work.HasField("instruction"):
                return None
            return codec.read_instruction(work.instruction)

        found = self._calling(once)
        if found is not None:
            self._working_on = found.id
            self._over.clear()
        return found

    def fetch(self, ref: ObjectRef) -> bytearray:
        """Return an object; its digest was checked.

        Raises
        ------
        InstructionOverError
            If it is no longer due to the node.
        WireError
            If it is too large, or not what its name says.
        """
        if ref.size > self._most_object_bytes:
            raise WireError(f"an object of {ref.size} bytes; at most {self._most_object_bytes}")
        return self._transfers.fetch(ref)

    def program(self, request: ProgramRequest) -> dict[str, bytearray]:
        """Return what a compiled program of this shape consists of.

        Raises
        ------
        WireError
            If the server does not build it. It is not asked again in this session.
        """
        if request in self._unbuilt:
            raise WireError(self._unbuilt[request])
        try:
            reply = self._calling(
                lambda: self._channel.unary(
                    "Program",
                    codec.write_program_request(request, self._session),
                    held=_BUILD_SECONDS,
                )
            )
        except WireError as error:
            self._unbuilt[request] = str(error)
            raise
        return {name: self.fetch(ref) for name, ref in codec.read_refs(reply.objects).items()}

    def report(
        self,
        instruction: Instruction,
        objects: Mapping[str, Bytes],
        metrics: Mapping[str, Metric],
        *,
        peak_bytes: int = 0,
        seconds: float = 0.0,
    ) -> bool:
        """Upload what was made, and end the instruction.

        Returns
        -------
        bool
            Whether it counts; False if the instruction was over.
        """
        refs = {name: ObjectRef.of(data) for name, data in objects.items()}
        report = Report(instruction.id, refs, metrics, peak_bytes=peak_bytes, seconds=seconds)
        try:
            for ref, name in {ref: name for name, ref in refs.items()}.items():
                self._transfers.upload(instruction.id, ref, objects[name])
        except InstructionOverError:
            return self._ended(counts=False)
        return self._send(report)

    def fail(
        self,
        instruction: Instruction,
        failure: FailureKind,
        reason: str = "",
        *,
        peak_bytes: int = 0,
        seconds: float = 0.0,
    ) -> bool:
        """End the instruction as a failure; see :meth:`report`."""
        report = Report(
            instruction.id,
            failure=failure,
            reason=as_reason(reason),
            peak_bytes=peak_bytes,
            seconds=seconds,
        )
        return self._send(report)

    @property
    def over(self) -> bool:
        """Whether the instruction that was waited for last has ended on the server meanwhile."""
        return self._over.is_set()

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

    def close(self, *, leave: bool = True) -> None:
        """End the session.

        Parameters
        ----------
        leave : bool
            Whether to tell the server. If not, the open instruction is due again when the node
            comes back.
        """
        self._closed.set()
        if leave:
            self.leave()
        self._channel.close()
        if self._heart.is_alive():
            self._heart.join()

    def __enter__(self) -> Self:
        """Return the link."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the session."""
        self.close()

    @property
    def _session(self) -> bytes:
        return self.registration.session

    def _calling(self, call: Callable[[], Result], *, progress: Callable[[], int] = int) -> Result:
        """Make a call until it is answered; register again where the session is not known."""

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
            if first and broken and (fault := self._channel.tls_fault()):
                raise InputError(fault) from None
            raise

    def _register(self, stale: Registration | None, seconds: float | None = None) -> Registration:
        with self._registering:
            if self._registration is None and stale is not None:
                raise Refusal("CANCELLED", "the node has left")
            if self._registration is stale or stale is None:
                request = codec.write_registration_request(self._node, VERSION)
                reply = self._channel.unary("Register", request, seconds=seconds)
                self._registration = codec.read_registration(reply)
                self._unbuilt.clear()
            return self.registration

    def _send(self, report: Report) -> bool:
        try:
            self._calling(
                lambda: self._channel.unary("Report", codec.write_report(report, self._session))
            )
        except InstructionOverError:
            return self._ended(counts=False)
        except _ReportedError:
            pass  # an attempt whose answer was lost
        return self._ended(counts=True)

    def _ended(self, *, counts: bool) -> bool:
        self._working_on = ""
        self._over.set()
        return counts

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


class _ReportedError(MestFedError):
    """The instruction was reported before."""


def _error_of(refusal: Refusal) -> MestFedError:
    kinds: dict[str, type[MestFedError]] = {
        "FAILED_PRECONDITION": InstructionOverError,
        "ALREADY_EXISTS": _ReportedError,
        "INVALID_ARGUMENT": WireError,
        "DATA_LOSS": WireError,
        "OUT_OF_RANGE": WireError,
    }
    text = f"{refusal.code}: {refusal}" if str(refusal) else refusal.code
    return kinds.get(refusal.code, RefusedError)(text)
