"""Certificates and keys for the tests, made anew."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID


def write_tls(folder, name="127.0.0.1", days=2, begin=-10):
    """Write a server's ``server.pem`` and ``server.key``, and the authority's ``ca.pem``."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    span = [datetime.now(UTC) + timedelta(days=each) for each in (begin, days)]
    ca = _certificate("authority", authority, authority, "authority", span, authority=True)
    own = _certificate("server", server, authority, "authority", span, address=name)
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(own.public_bytes(Encoding.PEM))
    key = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(key)
    return folder


def write_key(file):
    """Write an OpenSSH private key, and its public one beside it; return the file."""
    key = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    file.with_suffix(".pub").write_bytes(public)
    return file


def _certificate(name, key, issuer_key, issuer, span, *, authority=False, address=None):
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if address is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


#: Flower's configuration of one SuperLink with TLS on this machine.
CONNECTION_WITH_TLS = """
[superlink]
default = "home"

[superlink.home]
address = "127.0.0.1:{port}"
root-certificates = "{authority}"
"""


def superlink_options(folder):
    """Return a SuperLink's options with the files of ``mest-fed certs``; registered keys alone."""
    files = {"ca-certfile": "authority.pem", "certfile": "server.pem", "keyfile": "server.key"}
    options = [part for name, file in files.items() for part in (f"--ssl-{name}", folder / file)]
    return ["--host", "127.0.0.1", *options, "--enable-supernode-auth"]
