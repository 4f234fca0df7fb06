"""A node's connection to the server: calls that are made again when it breaks."""

import hashlib
import logging
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from mest_fed.errors import InputError
from mest_fed.link.addresses import check_address
from mest_fed.link.codec import EDGE_LINK, ENROLMENT, Method
from mest_fed.link.node.tls import NodeTls, tls_fault
from mest_fed.link.protocol import (
    LARGEST_REPLY,
    NEEDS_HEADER,
    NODE_HEADER,
    SAID_HEADER,
    Refusal,
    as_reason,
)
from mest_fed.rng import derive_seed

Result = TypeVar("Result")

log = logging.getLogger("mest_fed.link")

#: The connection broke, or the server is not there or has too much to do.
_AGAIN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL")
#: Bytes a second below which a transfer is broken off, and gone on with.
_SLOWEST = 4096.0
_BROKEN = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL")
_METHODS = {**EDGE_LINK, **ENROLMENT}
#: What a status means that gRPC gives, not the server: gRPC's own words are for programmers.
_IN_WORDS = {
    "DEADLINE_EXCEEDED": "the server at {} does not answer in time",
    "RESOURCE_EXHAUSTED": "the server at {} has too much to do",
    "UNIMPLEMENTED": "what answers at {} does not know this call: it is another service, or port",
}
#: Of a number of bytes.
_MOST_DIGITS = 18
_GONE, _NOBODY = "the server at {} is gone", "no server answers at {}"


@dataclass(frozen=True)
class Patience:
    """How long a node tries.

    Parameters
    ----------
    first, longest : float
        Pauses are drawn from 0 to a bound in seconds, which begins as ``first`` and doubles up to
        ``longest``.
    altogether : float
        Seconds of failing after which a call gives up; may be infinite.
    call_seconds : float
        Seconds that one call may take, beside what the server holds it back.
    """

    first: float = 1.0
    longest: float = 60.0
    altogether: float = math.inf
    call_seconds: float = 30.0


def pauses_of(own: bytes) -> random.Random:
    """Return what a node's pauses are drawn from: of what no other node has."""
    return random.Random(derive_seed(0, hashlib.sha256(own).hexdigest(), "reconnect"))


class Channel:
    """Calls to a server. They may come from several threads.

    Parameters
    ----------
    address : str
        ``host:port``.
    name : str
        The node's name.
    tls : NodeTls or None
        Certificates; None for a connection without TLS, to loopback alone.
    patience : Patience
        How long to try.
    key : str
        What a person calls the address.
    alone : bytes
        What no other node has, from which pauses are drawn, so that nodes come back apart. Without
        it, its certificate or, without one, its name: names of hosts are often alike.

    Raises
    ------
    InputError
        If the address cannot be used.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        tls: NodeTls | None,
        patience: Patience,
        key: str = "--link",
        alone: bytes = b"",
    ) -> None:
        self._address = check_address(address, insecure=tls is None, key=key, least_port=1)
        self._tls, self._patience = tls, patience
        self._metadata = ((NODE_HEADER, name),) if tls is None else ()
        own = alone or (b"" if tls is None else tls.certificate) or name.encode()
        self._random = pauses_of(own)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._closed, self._answered = threading.Event(), False
        #: Calls that were answered with what they asked for, and who waits for another one.
        self._answers, self._news = 0, threading.Condition()

    def unary(
        self, name: str, message: Any, *, held: float = 0.0, seconds: float | None = None
    ) -> Any:
        """Make a call once, that has one message each way.

        Parameters
        ----------
        name : str
            Of the protocol.
        message : message
            The request.
        held : float
            Seconds that the server may hold the answer back, beside those of any call.
        seconds : float, optional
            That it may take, by default those of :class:`Patience`.

        Raises
        ------
        Refusal
            With the status, if it is not OK.
        """
        with self._call(name) as call:
            timeout = (self._patience.call_seconds if seconds is None else seconds) + held
            return call(message, timeout=timeout, metadata=self._metadata)

    def read(self, name: str, message: Any, *, size: int) -> Iterator[Any]:
        """Make a call that many messages of so many bytes together answer; see :meth:`unary`."""
        with self._call(name) as call:
            yield from call(message, timeout=self._seconds(size), metadata=self._metadata)

    def write(self, name: str, messages: Iterator[Any], *, size: int) -> Any:
        """Make a call of many messages of so many bytes together; see :meth:`unary`."""
        with self._call(name) as call:
            return call(messages, timeout=self._seconds(size), metadata=self._metadata)

    def insist(
        self,
        call: Callable[[], Result],
        *,
        patient: float | None = None,
        progress: Callable[[], int] = int,
    ) -> Result:
        """Make a call until it is answered.

        Parameters
        ----------
        call : callable
            Makes it once.
        patient : float, optional
            Seconds of failing after which to give up; by default the node's patience.
        progress : callable, optional
            Returns how far a transfer has come: one that gets on does not try patience.

        Raises
        ------
        Refusal
            What the server answers that another attempt does not change; what the last attempt
            met, if patience is over or the channel was closed.
        """
        altogether = self._patience.altogether if patient is None else patient
        bound, begun, reached = self._patience.first, time.monotonic(), progress()
        while True:
            channel = self._channel
            try:
                return call()
            except Refusal as refusal:
                if refusal.code not in _AGAIN or self._closed.is_set():
                    raise
                if refusal.code in _BROKEN:
                    self._drop(channel or self._channel)
                if progress() > reached:
                    bound, begun, reached = self._patience.first, time.monotonic(), progress()
                left = begun + altogether - time.monotonic()
                if left <= 0:
                    raise
                pause = min(self._random.uniform(0.0, bound), left)
                log.warning("%s; next attempt in %.1f s", refusal, pause)
                broken, answers = refusal.code in _BROKEN, self._answers
            bound = min(2 * bound, self._patience.longest)
            self._pause(pause, answers if broken else None)

    def refuse_tls_fault(self, prefix: str = "") -> None:
        """Find what of TLS keeps the connection from being made, if anything of it does.

        Raises
        ------
        InputError
            If it stays so.
        Refusal
            If it may pass: the call is made again.
        """
        fault = tls_fault(self._address, self._tls)
        if fault is not None and not fault.passes:
            raise InputError(prefix + fault.text)
        if fault is not None:
            raise Refusal("UNAVAILABLE", fault.text)

    def close(self) -> None:
        """Close the connection; calls that wait end."""
        self._closed.set()
        with self._news:
            self._news.notify_all()
        self._drop(self._channel)

    def _pause(self, seconds: float, answers: int | None) -> None:
        """Wait; not longer than until there are more answers than so many.

        The thread that says that the node is alive may be the first that the server answers again.
        From then on the node is given work, and must not sleep.
        """

        def enough() -> bool:
            return self._closed.is_set() or answers not in (None, self._answers)

        with self._news:
            self._news.wait_for(enough, seconds)

    def _was_answered(self) -> None:
        self._answered = True
        with self._news:
            self._answers += 1
            self._news.notify_all()

    def _seconds(self, size: int) -> float:
        return self._patience.call_seconds + size / _SLOWEST

    @contextmanager
    def _call(self, name: str) -> Iterator[Any]:
        """Yield gRPC's callable; make its errors into refusals."""
        method, channel = _METHODS[name], self._connected()
        try:
            yield _maker(channel, method)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.reply.FromString,
            )
            self._was_answered()
        except grpc.RpcError as error:
            raise Refusal(error.code().name, self._reason(error), needs=_needs_of(error)) from None
        except ValueError:
            if self._channel is channel:
                raise
            raise Refusal("UNAVAILABLE", "the connection was closed") from None

    def _reason(self, error: Any) -> str:
        """Return the server's words, or where they are gRPC's what they mean."""
        code, said = error.code().name, as_reason(error.details() or "")
        if any(key == SAID_HEADER for key, _ in error.trailing_metadata() or ()):
            self._answered = True
            return said or f"the server at {self._address} has failed; its log says why"
        if code in _IN_WORDS:
            return _IN_WORDS[code].format(self._address)
        if code not in _AGAIN:
            return said
        if self._answered:
            return _GONE.format(self._address)
        return unknown_host(self._address) or _NOBODY.format(self._address)

    def _connected(self) -> grpc.Channel:
        with self._lock:
            if self._closed.is_set():
                raise Refusal("CANCELLED", "the connection was closed")
            if self._channel is None:
                self._channel = self._connect()
            return self._channel

    def _connect(self) -> grpc.Channel:
        options = [
            # One connection a node, also where many nodes are in one process.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", LARGEST_REPLY),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]
        if self._tls is None:
            return grpc.insecure_channel(self._address, options)
        own = (self._tls.key, self._tls.certificate) if self._tls.certificate else ()
        credentials = grpc.ssl_channel_credentials(self._tls.authority, *own)
        return grpc.secure_channel(self._address, credentials, options)

    def _drop(self, channel: grpc.Channel | None) -> None:
        """Close a connection that broke, unless another thread did."""
        with self._lock:
            if self._channel is None or self._channel is not channel:
                return
            self._channel = None
        channel.close()


def _needs_of(error: Any) -> int:
    """Return the bytes of budget that would do, as the server says; 0 where it says none."""
    said = dict(error.trailing_metadata() or ()).get(NEEDS_HEADER, "")
    digits = isinstance(said, str) and said.isascii() and said.isdecimal()
    return int(said) if digits and len(said) <= _MOST_DIGITS else 0


def unknown_host(address: str) -> str | None:
    """Say that this machine does not know the host of an address; None if it does."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return f"this machine knows no host {host!r} ({address})"
    return None


def _maker(channel: grpc.Channel, method: Method) -> Any:
    if method.streams_in:
        return channel.stream_unary
    return channel.unary_stream if method.streams_out else channel.unary_unary
