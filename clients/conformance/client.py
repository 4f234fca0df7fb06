r"""A small client of the edge link: the standard library, gRPC and what its protoc generates.

    python -m grpc_tools.protoc -I mest_fed/link --python_out=OUT --grpc_python_out=OUT \
        mest_link.proto
    PYTHONPATH=OUT python clients/conformance/client.py HOST:PORT NAME [CERTIFICATES]

A pattern for clients in other languages: it knows nothing of mest_fed. Its work is that of
``clients/conformance/server.py``; a real client trains there. It keeps nothing on a disk.
"""

import hashlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn


def fail(text: str, status: int = 2) -> NoReturn:
    """End with one line."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(status)


try:
    import grpc
    import mest_link_pb2 as pb
    import mest_link_pb2_grpc as services
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    how = "docs/foreign-clients.md says how protoc makes those of the protocol"
    fail(f"there is no module {error.name}; {how}")

#: Statuses after which a call is made again later, and after which a client ends.
AGAIN = {
    *("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
    *("UNKNOWN", "INTERNAL", "CANCELLED"),
}
STOP = {"ABORTED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT"}
#: Seconds that a call may take beside what the server holds it back.
CALL_SECONDS = 20.0


class Over(Exception):
    """The instruction has ended on the server, or was reported before: wait for the next."""


class Stopped(Exception):
    """The client is not wanted."""


class Client:
    """A node.

    Parameters
    ----------
    channel : grpc.Channel
        To the server.
    name : str
        Of the node.
    headers : list
        Of each call: without TLS a node says its name there.
    """

    def __init__(self, channel: Any, name: str, headers: list[tuple[str, str]]) -> None:
        self._calls = services.EdgeLinkStub(channel)
        self._name, self._headers = name, headers
        self._given: Any = None  # the server's answer to Register

    # Calls.

    def register(self) -> None:
        """Begin a session."""
        request = pb.RegisterRequest(version=1, name=self._name, examples=10, budget_bytes=1 << 20)
        self._given = self._calls.Register(request, timeout=CALL_SECONDS, metadata=self._headers)

    def call(self, make: Callable[[bytes], Any]) -> Any:
        """Make a call, with the session, until it is answered."""
        pause = 0.1
        while True:
            try:
                if self._given is None:
                    self.register()
                return make(self._given.session)
            except grpc.RpcError as error:
                code = error.code().name
                if code == "NOT_FOUND":
                    self._given = None
                elif code in STOP:
                    raise Stopped(code) from None
                elif code in ("FAILED_PRECONDITION", "ALREADY_EXISTS"):
                    raise Over(code) from None
                elif code not in AGAIN and code not in ("OUT_OF_RANGE", "DATA_LOSS"):
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 30.0)

    def unary(self, name: str, request: Callable[[bytes], Any], held: float = 0.0) -> Any:
        """Make a call of one message; `held`: seconds that the server may hold it back."""
        method, seconds = getattr(self._calls, name), CALL_SECONDS + held
        return self.call(
            lambda session: method(request(session), timeout=seconds, metadata=self._headers)
        )

    def fetch(self, ref: Any) -> bytes:
        """Return an object; a connection that breaks costs nothing that has arrived."""
        data = bytearray()

        def rest(session: bytes) -> None:
            request = pb.FetchRequest(session=session, sha256=ref.sha256, offset=len(data))
            for chunk in self._calls.Fetch(request, metadata=self._headers):
                data.extend(chunk.data)

        while len(data) < ref.bytes:
            self.call(rest)
        if hashlib.sha256(data).digest() != ref.sha256:
            raise ValueError("an object is not what its name says")
        return bytes(data)

    def upload(self, instruction: str, data: bytes) -> Any:
        """Upload an object from where the server has it; return what names it."""
        ref = pb.ObjectRef(sha256=hashlib.sha256(data).digest(), bytes=len(data))

        def parts(session: bytes, at: int) -> Iterator[Any]:
            first = {"session": session, "instruction": instruction, "sha256": ref.sha256}
            head: dict[str, Any] = {**first, "bytes": len(data), "offset": at}
            size = self._given.chunk_bytes
            for begin in range(at, max(len(data), at + 1), size):
                yield pb.Part(data=data[begin : begin + size], **head)
                head = {}

        def rest(session: bytes) -> int:
            asked = pb.UploadStateRequest(
                session=session, instruction=instruction, sha256=ref.sha256
            )
            seconds = {"timeout": CALL_SECONDS, "metadata": self._headers}
            at = self._calls.UploadState(asked, **seconds).received
            if at == len(data) and data:
                return at
            reply = self._calls.Upload(parts(session, at), metadata=self._headers)
            return int(reply.received)

        while self.call(rest) < len(data):
            pass
        return ref

    # Work.

    def run(self) -> None:
        """Carry instructions out until one says that it is the last."""
        while True:
            wait = self._given.wait_seconds if self._given else 30.0
            work = self.unary("Wait", lambda session: pb.WaitRequest(session=session), wait)
            if not work.HasField("instruction"):
                continue
            try:
                self.carry_out(work.instruction)
            except Over:
                continue
            if work.instruction.scalars["end"].truth:
                self.unary("Leave", lambda session: pb.LeaveRequest(session=session))
                return

    def carry_out(self, instruction: Any) -> None:
        """Do what an instruction of the conformance series asks for, and report it."""
        started = time.monotonic()
        objects, metrics = {}, {}
        if "input" in instruction.objects:
            data = self.fetch(instruction.objects["input"])
            metrics = {"bytes": len(data), "sum": sum(data)}
        self.take_time(instruction.id, instruction.scalars["seconds"].number)
        if instruction.kind == pb.KIND_TRAIN:
            output = bytes(byte ^ 0x5A for byte in data) * instruction.scalars["times"].integer
            objects["output"] = self.upload(instruction.id, output)
        seconds = time.monotonic() - started
        self.unary(
            "Report",
            lambda session: pb.ReportRequest(
                session=session,
                instruction=instruction.id,
                objects=objects,
                metrics={name: pb.Metric(number=value) for name, value in metrics.items()},
                seconds=seconds,
            ),
        )

    def take_time(self, instruction: str, seconds: float) -> None:
        """Stand for work: a heartbeat now and then, which says whether it is still wanted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            every = self._given.heartbeat_seconds if self._given else 1.0
            time.sleep(min(left, every))
            still = self.unary(
                "Heartbeat",
                lambda session: pb.HeartbeatRequest(session=session, instruction=instruction),
            )
            if not still.open:
                raise Over("withdrawn")


def main(address: str, name: str, certificates: str = "") -> None:
    """Run a client; CERTIFICATES is a folder with node.pem, node.key and authority.pem."""
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 30_000),
        ("grpc.max_receive_message_length", 2 << 20),
    ]
    if certificates:
        names = ("authority.pem", "node.key", "node.pem")
        files = [(Path(certificates) / each).read_bytes() for each in names]
        credentials = grpc.ssl_channel_credentials(*files)
        channel, headers = grpc.secure_channel(address, credentials, options), []
    else:
        channel, headers = grpc.insecure_channel(address, options), [("mest-node", name)]
    with channel:
        Client(channel, name, headers).run()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        fail(f"{len(sys.argv) - 1} arguments; allowed: HOST:PORT NAME [CERTIFICATES]")
    try:
        main(*sys.argv[1:])
    except Stopped as error:
        fail(f"the server does not take this client: {error}", 4)
    except OSError as error:
        fail(f"{error.filename} cannot be read: {error.strerror}")
