"""A node's certificates, and what of TLS is wrong where gRPC says only that nothing connects."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 5.0
#: What OpenSSL calls an answer that is not of TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
#: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of <openssl/x509_vfy.h>.
_NOT_YET_VALID, _HAS_EXPIRED = 9, 10


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


@dataclass(frozen=True)
class TlsFault:
    """What of TLS keeps a node from a server.

    Parameters
    ----------
    text : str
        One line.
    passes : bool
        Whether it may pass by itself: a board without a battery sets its clock once it has a
        network.
    """

    text: str
    passes: bool = False


def tls_fault(address: str, tls: NodeTls | None) -> TlsFault | None:
    """Find what of TLS keeps a node from a server; None if it is something else.

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
            none = "the authority's file holds no certificate as PEM"
            return TlsFault(own if tls.certificate else none)
        try:
            with context.wrap_socket(plain, server_hostname=host) as wrapped:
                # With TLS 1.3 a server judges this side's certificate after the handshake. One that
                # takes it speaks first; gRPC's says nothing where it does not, and is gone.
                refused = not wrapped.recv(1)
        except ssl.SSLCertVerificationError as error:
            return _unverified(address, error)
        except ssl.SSLError as error:
            if error.reason in _NO_TLS:
                where = "allowed: a server with TLS, or --insecure on loopback"
                return TlsFault(f"the server at {address} does not speak TLS; {where}")
            refused = "ALERT" in str(error.reason)
        except OSError:
            refused = False
    if not refused:
        return None
    if not tls.certificate:
        text = "it is where nodes work; allowed: where mest-fed server has --enrol"
        return TlsFault(f"the server at {address} demands a certificate: {text}")
    text = "it is not valid at the server's time, or another authority signed it"
    return TlsFault(f"the server at {address} refuses the node's certificate: {text}")


def _unverified(address: str, error: Any) -> TlsFault:
    """Return what a server's certificate lacks; this device's clock may be the cause."""
    said = f"the certificate of the server at {address} is refused: {error.verify_message}"
    if error.verify_code not in (_NOT_YET_VALID, _HAS_EXPIRED):
        return TlsFault(said)
    clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return TlsFault(f"{said}, by this device's clock: {clock}", error.verify_code == _NOT_YET_VALID)


def _speaks_tls(ssl: Any, plain: socket.socket, address: str) -> TlsFault | None:
    """Find that a server speaks TLS, where a node does not; None if it does not either."""
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
    return TlsFault(f"--insecure: the server at {address} speaks TLS; allowed: {allowed}")


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
