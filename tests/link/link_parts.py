"""Servers, nodes, certificates and a relay for the tests of the edge link, all over loopback."""

import contextlib
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mest_fed.link.messages import Instruction, InstructionKind, NodeDescription
from mest_fed.link.node.transport import NodeLink, NodeTls, Patience
from mest_fed.link.server.edge_server import EdgeServer, ServerTls
from mest_fed.link.server.limits import Limits

#: Everything soon, so that tests are.
QUICK = Limits(
    chunk_bytes=1024,
    heartbeat_seconds=0.4,
    wait_seconds=1.0,
    gone_seconds=30.0,
    stall_seconds=2.0,
    calls_per_second=500.0,
    call_burst=2000,
)
SOON = Patience(first=0.05, longest=0.3, altogether=15.0, call_seconds=5.0)
RUN = '{"model": "resnet8"}'


@dataclass
class Authority:
    """Signs certificates."""

    name: str = "authority"

    def __post_init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.name, self.key.public_key(), authority=True)

    @property
    def pem(self):
        return self.certificate.public_bytes(Encoding.PEM)

    def server(self, **how):
        certificate, key = self._pair("server", address="127.0.0.1", **how)
        return ServerTls(certificate, key, self.pem)

    def node(self, name, *, days=2, believes=None):
        certificate, key = self._pair(name, days=days)
        return NodeTls(certificate, key, believes or self.pem)

    def sign_request(self, csr_pem, name):
        request = x509.load_pem_x509_csr(csr_pem)
        return self._sign(name, request.public_key()).public_bytes(Encoding.PEM)

    def _pair(self, name, **how):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key.public_key(), **how)
        return certificate.public_bytes(Encoding.PEM), key_pem(key)

    def _sign(self, name, public_key, *, begins=-10, days=2, authority=False, address=None):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begins))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if address is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())


def key_pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def serve(tls=None, *, port=0, limits=QUICK, describe=lambda _: RUN, **how):
    """Start a server, without TLS where there are no certificates."""
    address = f"127.0.0.1:{port}"
    return EdgeServer(
        address, describe=describe, tls=tls, insecure=tls is None, limits=limits, **how
    )


def node(port, name="pi-1", tls=None, *, patience=SOON, **described):
    """Make a node; it is not registered."""
    description = NodeDescription(name, **described)
    return NodeLink(
        f"127.0.0.1:{port}", description, tls=tls, insecure=tls is None, patience=patience
    )


def train(name="task-1", **how):
    return Instruction(name, InstructionKind.TRAIN, 1, **how)


class Relay:
    """Passes TCP connections on to a port; counts bytes, and can cut them."""

    def __init__(self, port):
        self._target = port
        self.up = self.down = self.cuts = self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(("127.0.0.1", self._target))
                self.connections += 1
                self._sockets += [inner, outer]
                for one, other, way in ((inner, outer, "up"), (outer, inner, "down")):
                    threading.Thread(target=self._pass, args=(one, other, way), daemon=True).start()

    def _pass(self, one, other, way):
        with contextlib.suppress(OSError):
            while data := one.recv(16384):
                setattr(self, way, getattr(self, way) + len(data))
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break all connections."""
        self.cuts += 1
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
