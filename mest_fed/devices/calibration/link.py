"""How fast a device sends and receives: known numbers of bytes over TCP, to a server that answers.

A client sends requests of nine bytes: ``D`` or ``U``, and a number. After ``D`` the server sends so
many bytes; after ``U`` it reads so many, and answers with one. Nothing is encrypted: the bytes say
nothing, and nothing of them is kept.
"""

import socket
import socketserver
import statistics
import struct
import threading
import time
from dataclasses import dataclass
from typing import cast

from mest_fed.errors import InputError, RefusedError, not_allowed
from mest_fed.units import address_allowed, is_port

_REQUEST = struct.Struct("!cQ")
_DOWN, _UP = b"D", b"U"
#: Bytes of one request at most, and at first.
MOST_BYTES, FIRST_BYTES = 2**26, 2**17
#: Bytes of a connection at most, clients at once, and seconds without a byte until one is left.
_MOST_OF_ALL, _MOST_CLIENTS, _SILENCE = 2**29, 4, 20.0
_PIECE, _ECHOES = 2**16, 9
_ONCE = bytes(range(256)) * (_PIECE // 256)


@dataclass(frozen=True)
class LinkRates:
    """What a transfer took, measured.

    Parameters
    ----------
    download_rate, upload_rate : float
        Bytes a second.
    latency : float
        Seconds, one way: half of an exchange of a byte.
    """

    download_rate: float
    upload_rate: float
    latency: float


def read_address(text: str, key: str, least_port: int = 1) -> tuple[str, int]:
    """Return host and port; port 0 is any free one, to listen on.

    Raises
    ------
    InputError
        If it is no ``HOST:PORT``.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and is_port(port, least_port)):
        raise not_allowed(key, text, address_allowed("192.168.1.10:9445", least_port))
    return host, int(port)


class _Answer(socketserver.BaseRequestHandler):
    """Answers the requests of one client."""

    def handle(self) -> None:
        """Answer until the client goes, asks for what is not allowed, or is silent."""
        server = cast("LinkServer", self.server)
        if not server.places.acquire(blocking=False):
            return
        try:
            self.request.settimeout(_SILENCE)
            self._answer()
        except OSError:  # it has gone
            pass
        finally:
            server.places.release()

    def _answer(self) -> None:
        peer, left = self.request, _MOST_OF_ALL
        while request := _take(peer, _REQUEST.size):
            kind, count = _REQUEST.unpack(request)
            left -= count
            if not 0 < count <= MOST_BYTES or left < 0 or kind not in (_DOWN, _UP):
                return
            if kind == _DOWN:
                _give(peer, count)
            else:
                _skip(peer, count)
                peer.sendall(b"\0")


class LinkServer(socketserver.ThreadingTCPServer):
    """Answers devices that time their link; a few at once.

    Parameters
    ----------
    address : tuple of (str, int)
        Where it listens; port 0 is any.

    Raises
    ------
    InputError
        If it cannot listen there.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.places = threading.Semaphore(_MOST_CLIENTS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Answer)
        except OSError as error:
            where = f"{address[0]}:{address[1]}"
            raise InputError(f"--serve {where}: {error.strerror or error}") from None

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])


def time_link(address: tuple[str, int], seconds: float = 1.0) -> LinkRates:
    """Time transfers to a :class:`LinkServer`, of more and more bytes until one takes long enough.

    Parameters
    ----------
    address : tuple of (str, int)
        Of the server.
    seconds : float
        That a transfer shall take at least, if that needs no more than :data:`MOST_BYTES`.

    Raises
    ------
    RefusedError
        If the server is not there, or goes away.
    """
    where = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, timeout=_SILENCE) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            exchange = statistics.median(_timed(peer, _UP, 1) for _ in range(_ECHOES))
            down, up = (_rate(peer, kind, exchange, seconds) for kind in (_DOWN, _UP))
    except OSError as error:
        raise RefusedError(
            f"--server {where}: {error.strerror or error}; does mest-fed calibrate --serve run "
            "there?"
        ) from None
    return LinkRates(down, up, exchange / 2)


def _rate(peer: socket.socket, kind: bytes, exchange: float, seconds: float) -> float:
    count = FIRST_BYTES
    while True:
        took = _timed(peer, kind, count)
        if took >= seconds or 2 * count > MOST_BYTES:
            return count / max(took - exchange, 0.1 * took)
        count *= 2 if took > 0.3 * seconds else min(8, MOST_BYTES // count)


def _timed(peer: socket.socket, kind: bytes, count: int) -> float:
    start = time.perf_counter()
    peer.sendall(_REQUEST.pack(kind, count))
    if kind == _DOWN:
        _skip(peer, count)
    else:
        _give(peer, count)
        _skip(peer, 1)
    return time.perf_counter() - start


def _give(peer: socket.socket, count: int) -> None:
    for begin in range(0, count, _PIECE):
        peer.sendall(_ONCE[: min(_PIECE, count - begin)])


def _skip(peer: socket.socket, count: int) -> None:
    while count:
        data = peer.recv(min(_PIECE, count))
        if not data:
            raise ConnectionResetError("the connection was closed")
        count -= len(data)


def _take(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = peer.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data
