"""EdgeServer: the server side of the edge link, in a thread of its own.

The rest of the program submits instructions and takes outcomes, from any thread.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from mest_fed.errors import InputError
from mest_fed.link.addresses import check_address
from mest_fed.link.messages import Bytes, Instruction, Outcome
from mest_fed.link.protocol import MESSAGE_ROOM
from mest_fed.link.server.calls import Refusals, log
from mest_fed.link.server.enrolment import Enrol, EnrolmentService
from mest_fed.link.server.limits import Limits
from mest_fed.link.server.nodes import Identity, NodeInfo
from mest_fed.link.server.objects import Blob
from mest_fed.link.server.programs import Builder, Programs
from mest_fed.link.server.service import Describe, EdgeLinkService, refuses_programs
from mest_fed.link.server.sessions import Book

#: Seconds between looks at deadlines.
_TICK = 0.25
#: Seconds that calls have to end when the server stops.
_GRACE = 0.5
_START_SECONDS = 30.0
#: Why there is no server any more, for nodes.
ENDED = "the run has ended; this node takes part in the next one"
STOPPED = "the server was stopped before its run had ended"


@dataclass(frozen=True)
class ServerTls:
    """What the server shows, and whom it believes: PEM.

    Parameters
    ----------
    certificate, key : bytes
        The server's own.
    authority : bytes
        Certificates of whoever signs nodes' certificates.
    """

    certificate: bytes
    key: bytes
    authority: bytes

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Return gRPC's credentials; mutual ones demand a client's certificate."""
        pair = [(self.key, self.certificate)]
        if not mutual:
            return grpc.ssl_server_credentials(pair)
        return grpc.ssl_server_credentials(pair, self.authority, require_client_auth=True)


class EdgeServer:
    """The server side of the edge link. It runs from its creation until :meth:`close`.

    Parameters
    ----------
    address : str
        ``host:port`` for nodes; port 0 takes a free one.
    describe : callable
        Returns the run's description, as JSON, for a node that registers.
    tls : ServerTls, optional
        Certificates.
    insecure : bool
        True instead of ``tls``: nodes say their names themselves, on loopback alone.
    program : callable, optional
        Builds compiled programs that a node asks for. What it raises is why there is none, for the
        life of the server; see :class:`mest_fed.link.server.programs.Programs`.
    admit : callable, optional
        Says whether a certificate takes part; asked at each call. By default all that the
        authority signed do.
    limits : Limits, optional
        Bounds.
    enrolment_address, enrol : str, callable, optional
        Where and how nodes get certificates.
    health : bool
        Whether gRPC's health service answers at ``address``, too.

    Raises
    ------
    InputError
        If an address cannot be used, certificates cannot be read, or there are neither
        certificates nor ``insecure``.
    """

    def __init__(
        self,
        address: str,
        *,
        describe: Describe,
        tls: ServerTls | None = None,
        insecure: bool = False,
        program: Builder = refuses_programs,
        admit: Callable[[Identity], bool] = lambda _: True,
        limits: Limits | None = None,
        enrolment_address: str = "",
        enrol: Enrol | None = None,
        health: bool = False,
    ) -> None:
        if (tls is None) != insecure:
            raise InputError("an edge link needs certificates, or insecure = true on loopback")
        if enrol is not None and tls is None:
            raise InputError("enrolment needs certificates")
        self._tls, self._limits, self._health = tls, limits or Limits(), health
        self._addresses = check_address(address, insecure=insecure), enrolment_address
        if enrol is not None:
            check_address(enrolment_address, insecure=False)
        self._executor = ThreadPoolExecutor(2, "mest-link-work")
        self._book = Book(self._limits, admit)
        self._refusals = Refusals()
        programs = Programs(program, self._limits.program_bytes, self._executor, self._refusals.log)
        self._service = EdgeLinkService(
            self._book, describe, programs, executor=self._executor, insecure=insecure
        )
        self._enrolment = EnrolmentService(enrol, self._executor) if enrol else None
        self._started, self._reason = threading.Event(), STOPPED
        self._failures: list[Exception] = []
        self._ports = [0, 0]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="mest-link", daemon=True)
        self._thread.start()
        self._started.wait(_START_SECONDS)
        if self._failures:
            self._thread.join()
            self._executor.shutdown(wait=False)
            raise self._failures[0]

    @property
    def port(self) -> int:
        """Port that nodes connect to."""
        return self._ports[0]

    @property
    def enrolment_port(self) -> int:
        """Port where nodes get certificates; 0 if they do not."""
        return self._ports[1]

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that are registered and present, by id."""
        return self._book.nodes()

    def submit(
        self,
        node_id: int,
        instruction: Instruction,
        objects: Mapping[str, Blob | Bytes] | None = None,
    ) -> None:
        """Give a node an instruction; what comes of it is one of :meth:`poll`.

        See :meth:`mest_fed.link.server.sessions.Book.submit`.
        """
        self._book.submit(node_id, instruction, objects or {})

    def withdraw(self, node_id: int, instruction: str) -> None:
        """End an instruction that is no longer wanted; nothing happens if it has ended."""
        self._book.withdraw(node_id, instruction)

    def poll(self, timeout: float = 0.0) -> list[Outcome]:
        """Return what has ended since the last time.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the first, if there is none yet.
        """
        return self._book.take_outcomes(timeout)

    def close(self, reason: str = STOPPED) -> None:
        """Stop; nodes are told why, and try again until there is a server.

        Parameters
        ----------
        reason : str
            For people.
        """
        self._reason = reason
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        self._thread.join()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; without an error, the run of this server has ended."""
        self.close(ENDED if kind is None else STOPPED)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failures.append(error)
            if self._started.is_set():
                log.error("the edge link stopped: %s: %s", type(error).__name__, error)
        finally:
            self._started.set()

    async def _serve(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        stop = self._stop = asyncio.Event()

        def wake(node_id: int) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._service.wake, node_id)

        self._book.on_due = wake
        calls = self._limits.nodes * (2 + self._limits.streams)
        # Port 0 is two servers' own: what one of them binds is known when the other begins.
        servers = [self._server(self._service.handlers(self._refusals), calls)]
        self._ports[0] = self._bind(servers[0], self._addresses[0], mutual=True)
        if self._health:
            _add_health(servers[0])
        if self._enrolment is not None:
            servers.append(self._server(self._enrolment.handlers(self._refusals), calls))
            self._ports[1] = self._bind(servers[1], self._addresses[1], mutual=False)
        for server in servers:
            await server.start()
        self._started.set()
        try:
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _TICK)
                self._book.expire()
        finally:
            self._service.end(self._reason)
            await asyncio.gather(*(server.stop(_GRACE) for server in servers))

    def _server(self, handler: grpc.GenericRpcHandler, calls: int) -> Any:
        options = _options(self._limits)
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=calls)
        server.add_generic_rpc_handlers((handler,))
        return server

    def _bind(self, server: Any, address: str, *, mutual: bool) -> int:
        try:
            if self._tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._tls.credentials(mutual=mutual))
        except (RuntimeError, ValueError):
            port = 0
        if not port:
            text = "it is in use, or not of this machine"
            if self._tls is not None:
                text += ", or the certificates do not fit together"
            raise InputError(f"the edge link cannot listen on {address}: {text}")
        return int(port)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """Return gRPC's settings: nothing that a peer does or leaves undone holds others up."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.chunk_bytes + MESSAGE_ROOM),
        ("grpc.absolute_max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", 8 + limits.streams),
        ("grpc.max_allowed_incoming_connections", 2 * limits.nodes + 64),
        # A connection that does not finish its handshake, does nothing, or no longer answers.
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.handshake_seconds)),
        ("grpc.max_connection_idle_ms", int(2000 * limits.heartbeat_seconds)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        # A call whose message never comes to an end ends with its connection.
        ("grpc.max_connection_age_ms", 3_600_000),
        ("grpc.max_connection_age_grace_ms", 120_000),
    ]


def _add_health(server: Any) -> None:
    from grpc_health.v1 import health, health_pb2_grpc

    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
