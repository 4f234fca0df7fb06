"""A node's certificates, and what of TLS is wrong where gRPC says only that nothing connects."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 5.0
#: What OpenSSL calls an answer that is not of TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


@dataclass(frozen=True)
class NodeTls:
    """What the node shows, and whom it believes: PEM.

    Parameters
    ----------
    certificate, key : bytes
        The node's own; empty where it has none yet, as when it enrols.
    authority : bytes
        The authority that signed the server's certificate.
    """

    certificate: bytes
    key: bytes
    authority: bytes


def tls_fault(address: str, tls: NodeTls | None) -> str | None:
    """Say what of TLS keeps a node from a server: one line; None if it is something else.

    Parameters
    ----------
    address : str
        ``host:port`` of the server.
    tls : NodeTls or None
        What the node shows and believes; None if it connects without TLS.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        plain = socket.create_connection((host, int(port)), _SECONDS)
    except OSError:
        return None
    # A node whose server is there, and who fits it, never imports this: it takes memory.
    import ssl

    with plain:
        if tls is None:
            return _speaks_tls(ssl, plain, address)
        try:
            context = _context(ssl, tls)
        except (ssl.SSLError, OSError, ValueError):
            own = "the node's certificate, its key and the authority do not fit together"
            return own if tls.certificate else "the authority's file holds no certificate as PEM"
        try:
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                # With TLS 1.3 a server judges this side's certificate after the handshake. One that
                # takes it speaks first; gRPC's says nothing where it does not, and is gone.
                refused = not wrapped.recv(1)
        except ssl.SSLCertVerificationError as error:
            return f"the certificate of the server at {address} is refused: {error.verify_message}"
        except ssl.SSLError as error:
            if error.reason in _NO_TLS:
                where = "allowed: a server with TLS, or --insecure on loopback"
                return f"the server at {address} does not speak TLS; {where}"
            refused = "ALERT" in str(error.reason)
        except OSError:
            refused = False
    if not refused:
        return None
    if not tls.certificate:
        text = "it is where nodes work; allowed: where mest-fed server has --enrol"
        return f"the server at {address} demands a certificate: {text}"
    text = "it has expired, or another authority signed it"
    return f"the server at {address} refuses the node's certificate: {text}"


def _speaks_tls(ssl: Any, plain: socket.socket, address: str) -> str | None:
    """Say that a server speaks TLS, to a node that does not; None if it does not either."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(plain).close()
    except ssl.SSLError as error:
        if error.reason in _NO_TLS or "ALERT" not in str(error.reason):
            return None
    except OSError:
        return None
    allowed = "--certificates FOLDER, or --enrol with --token and --authority, instead"
    return f"--insecure: the server at {address} speaks TLS; allowed: {allowed}"


def _context(ssl: Any, tls: NodeTls) -> Any:
    from tempfile import TemporaryDirectory

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=tls.authority.decode("ascii"))
    if not tls.certificate:
        return context
    # Python reads a certificate and its key from files alone.
    with TemporaryDirectory(prefix="mest-fed-node-") as folder:
        files = [Path(folder) / "node.pem", Path(folder) / "node.key"]
        for file, data in zip(files, (tls.certificate, tls.key), strict=True):
            file.touch(mode=0o600)
            file.write_bytes(data)
        context.load_cert_chain(*files)
    return context
