"""NodeLink: the node side of the edge link, which waits, fetches and reports.

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

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from mest_fed.errors import InputError, WireError
from mest_fed.link import codec
from mest_fed.link import mest_link_pb2 as pb
from mest_fed.link.messages import (
    Bytes,
    Instruction,
    Metric,
    NodeDescription,
    ObjectRef,
    ProgramRequest,
    Registration,
    Report,
)
from mest_fed.link.node.channel import Channel, Patience
from mest_fed.link.node.enrolling import enrol
from mest_fed.link.node.session import InstructionOverError, ReportedError, Session
from mest_fed.link.node.tls import NodeTls
from mest_fed.link.node.transfers import Transfers
from mest_fed.link.protocol import as_reason
from mest_fed.schema import FailureKind

__all__ = [
    "NodeDescription",
    "NodeLink",
    "NodeTls",
    "Patience",
    "enrol",
]

#: Seconds that a program may take to be built.
_BUILD_SECONDS = 120.0
_MOST_OBJECT_BYTES = 1 << 30


class NodeLink:
    """What a node says to a server, in its session.

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
        self._most_object_bytes = most_object_bytes
        self._channel = Channel(address, node.name, tls=tls, patience=patience or Patience())
        self._unbuilt: dict[ProgramRequest, str] = {}
        self._session = Session(self._channel, node, self._unbuilt.clear)
        self._transfers = Transfers(self._channel, lambda: self.registration, self._session.call)

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
        return self._session.register(node)

    def leave(self) -> None:
        """End the session, and with it what is due to the node; :meth:`register` begins another."""
        self._session.leave()

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
        if self.over:
            self._session.work_ended()

        def once() -> Instruction | None:
            held = self.registration.wait_seconds
            session = self._session
            request = pb.WaitRequest(session=session.id, last_seen=session.working_on)
            work = self._channel.unary("Wait", request, held=held)
            if not work.HasField("instruction"):
                return None
            return codec.read_instruction(work.instruction)

        found = self._session.call(once)
        if found is not None:
            self._session.work_on(found.id)
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
            reply = self._session.call(
                lambda: self._channel.unary(
                    "Program",
                    codec.write_program_request(request, self._session.id),
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
        return self._session.over

    @property
    def registration(self) -> Registration:
        """What the server said last.

        Raises
        ------
        RefusedError
            If the node has not registered.
        """
        return self._session.registration

    def close(self, *, leave: bool = True) -> None:
        """End the session.

        Parameters
        ----------
        leave : bool
            Whether to tell the server. If not, the open instruction is due again when the node
            comes back.
        """
        self._session.stop()
        if leave:
            self.leave()
        self._channel.close()
        self._session.join()

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

    def _send(self, report: Report) -> bool:
        try:
            self._session.call(
                lambda: self._channel.unary("Report", codec.write_report(report, self._session.id))
            )
        except InstructionOverError:
            return self._ended(counts=False)
        except ReportedError:
            pass  # an attempt whose answer was lost
        return self._ended(counts=True)

    def _ended(self, *, counts: bool) -> bool:
        self._session.work_ended()
        return counts
