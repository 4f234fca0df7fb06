"""A node's certificates, and what is wrong with one where gRPC says only that nothing connects."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 5.0


@dataclass(frozen=True)
class NodeTls:
    """What the node shows, and whom it believes: PEM.

    Parameters
    ----------
    certificate, key : bytes
        The node's own.
    authority : bytes
        The authority that signed the server's certificate.
    """

    certificate: bytes
    key: bytes
    authority: bytes


def tls_fault(address: str, tls: NodeTls) -> str | None:
    """Say which certificate keeps a node from a server: one line; None if it is something else."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        plain = socket.create_connection((host, int(port)), _SECONDS)
    except OSError:
        return None
    # A node whose server is there, and who fits it, never imports this: it takes memory.
    import ssl

    with plain:
        try:
            context = _context(ssl, tls)
        except (ssl.SSLError, OSError, ValueError):
            return "the node's certificate, its key and the authority do not fit together"
        try:
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                # With TLS 1.3 a server judges this side's certificate after the handshake. One that
                # takes it speaks first; gRPC's says nothing where it does not, and is gone.
                refused = not wrapped.recv(1)
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of the server at {address} is refused: {error.verify_message}"
        except ssl.SSLError as error:
            refused = "ALERT" in str(error.reason)
        except OSError:
            refused = False
    if not refused:
        return None
    text = "it has expired, or another authority signed it"
    return f"the server at {address} refuses the node's certificate: {text}"


def _context(ssl: Any, tls: NodeTls) -> Any:
    from tempfile import TemporaryDirectory

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=tls.authority.decode("ascii"))
    # Python reads a certificate and its key from files alone.
    with TemporaryDirectory(prefix="mest-fed-node-") as folder:
        files = [Path(folder) / "node.pem", Path(folder) / "node.key"]
        for file, data in zip(files, (tls.certificate, tls.key), strict=True):
            file.touch(mode=0o600)
            file.write_bytes(data)
        context.load_cert_chain(*files)
    return context
