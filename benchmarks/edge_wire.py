"""What the edge link's parts share: certificates, links of nodes, a relay that counts bytes."""

import contextlib
import random
import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mest_fed.link.certificates import Authority, key_pem, new_key
from mest_fed.link.messages import NodeDescription
from mest_fed.link.node.transport import NodeLink, NodeTls, Patience
from mest_fed.link.server.edge_server import EdgeServer, ServerTls

#: What nodes are told of the run: nothing that they use.
RUN = "{}"
AUTHORITY, SERVER = "authority", "server"
_PATIENCE = Patience(altogether=300.0)


def make_certificates(folder: Path, names: Sequence[str]) -> None:
    """Write an authority, and certificates of a server on loopback and of nodes."""
    authority = Authority.new()
    (folder / f"{AUTHORITY}.pem").write_bytes(authority.pem())
    loopback = [x509.IPAddress(ip_address("127.0.0.1"))]
    for name in (SERVER, *names):
        key = new_key()
        use = ExtendedKeyUsageOID.SERVER_AUTH if name == SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
        hosts = loopback if name == SERVER else ()
        (folder / f"{name}.pem").write_bytes(authority.sign(name, key.public_key(), use, hosts))
        (folder / f"{name}.key").write_bytes(key_pem(key))


def open_server(folder: Path | None) -> EdgeServer:
    """Listen on a free port of loopback, with the certificates of a folder or without TLS."""
    if folder is None:
        return EdgeServer("127.0.0.1:0", describe=lambda _: RUN, insecure=True)
    tls = ServerTls(*_pair(folder, SERVER), _authority(folder))
    return EdgeServer("127.0.0.1:0", describe=lambda _: RUN, tls=tls)


def open_link(folder: Path | None, name: str, port: int) -> NodeLink:
    """Return the link of a node; it is not registered."""
    tls = None if folder is None else NodeTls(*_pair(folder, name), _authority(folder))
    node, address = NodeDescription(name, examples=1), f"127.0.0.1:{port}"
    return NodeLink(address, node, tls=tls, insecure=tls is None, patience=_PATIENCE)


def payload_of(name: str, number: int, size: int) -> bytes:
    """Return bytes that cannot be compressed, always the same of a name and a round."""
    return random.Random(f"0/{name}/{number}").randbytes(size)


class Relay:
    """Passes TCP connections on to a port of loopback, and counts the bytes of each way.

    What is counted is the content of the TCP connection; headers of TCP and IP are not.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.up = self.down = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def passed(self) -> int:
        """Bytes of both ways so far."""
        return self.up + self.down

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [inner, outer]
                for one, other, way in ((inner, outer, "up"), (outer, inner, "down")):
                    threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))  # one thread for each way
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    return (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()


def _authority(folder: Path) -> bytes:
    return (folder / f"{AUTHORITY}.pem").read_bytes()
