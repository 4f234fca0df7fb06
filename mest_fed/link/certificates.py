"""A certificate authority for a home network, and what it signs.

Its folder is made by ``mest-fed certs``: ``authority.pem`` and ``authority.key``; beside them stand
the tokens of :mod:`mest_fed.link.tokens`.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from mest_fed.errors import InputError, WireError, not_allowed

AUTHORITY, AUTHORITY_KEY = "authority.pem", "authority.key"

#: How long an authority is valid, and what it signs at most: what Apple's devices accept.
AUTHORITY_DAYS, SIGNED_DAYS = 3653, 825
#: A certificate begins so long before it is made: a board without a battery may start in the past.
_EARLIER = timedelta(days=1)
#: Bytes of a request to sign that are looked at.
LARGEST_REQUEST = 8192

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

#: What the library raises of bytes that it cannot read.
_NOT_READ = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def check_in_time(path: Path) -> None:
    """Refuse a certificate of today's past or future, which every device would refuse.

    Raises
    ------
    InputError
        If it is no certificate, or not valid now.
    """
    found = read_certificate(path)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if not begin <= _now() < end:
        when = f"expired on {end:%Y-%m-%d}" if end <= _now() else f"begins on {begin:%Y-%m-%d}"
        raise InputError(
            f"{path} {when}, by this machine's clock; allowed: one that is valid: mest-fed certs "
            f"renew {path.parent}"
        )


def check_pair(certificate: Path, key: Path) -> None:
    """Refuse files that are no certificate and no key, or do not belong together.

    Raises
    ------
    InputError
        Which file it is.
    """
    try:
        found = read_certificate(certificate)
    except FileNotFoundError as error:
        raise InputError(f"{certificate} cannot be read: {error.strerror}") from None
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{key} cannot be read: {error.strerror}") from None
    except _NOT_READ:
        raise InputError(f"{key} is not a private key in PEM, without a passphrase") from None
    if _public_der(private.public_key()) != _public_der(found.public_key()):
        raise InputError(f"{key} is not the key of {certificate}")


@dataclass(frozen=True)
class Authority:
    """What signs: a certificate, and the private key that belongs to it."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def new(cls) -> "Authority":
        """Make an authority with a key of its own (P-256)."""
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own, so that a file of an earlier authority is not taken for this one's.
        name = _subject(f"mest-fed authority {secrets.token_hex(4)}")
        builder = _builder(name, name, key.public_key(), _now() + timedelta(days=AUTHORITY_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        return cls(builder.sign(key, SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """Read the authority of a folder.

        Raises
        ------
        InputError
            If there is none, its files are no certificate and key, they do not belong together, or
            it has expired.
        """
        certificate, path = read_authority(folder), folder / AUTHORITY_KEY
        if certificate.not_valid_after_utc <= _now():
            raise InputError(
                f"{folder / AUTHORITY} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; "
                f"allowed: a new one: mest-fed certs new {folder} --host HOST --force, then renew"
            )
        key = _read_key(path)
        if _public_der(key.public_key()) != _public_der(certificate.public_key()):
            raise InputError(f"{path} is not the key of {folder / AUTHORITY}")
        return cls(certificate, key)

    def pem(self) -> bytes:
        """Return the certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(
        self,
        name: str,
        public_key: Any,
        purpose: ObjectIdentifier,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> bytes:
        """Sign a key for one purpose; return the certificate as PEM.

        It is valid for ``SIGNED_DAYS`` days, and no longer than the authority.
        """
        end = min(_now() + timedelta(days=SIGNED_DAYS), self.certificate.not_valid_after_utc)
        builder = _builder(_subject(name), self.certificate.subject, public_key, end)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            builder.add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer, critical=False)
        )
        if hosts:
            names = x509.SubjectAlternativeName(hosts)
            builder = builder.add_extension(names, critical=False)
        algorithm = None if isinstance(self.key, ed25519.Ed25519PrivateKey) else SHA256()
        return builder.sign(self.key, algorithm).public_bytes(Encoding.PEM)


def sign_request(authority: Authority, csr_pem: bytes, name: str) -> bytes:
    """Sign a device's request; it may serve as a TLS client, and for nothing else.

    Parameters
    ----------
    authority : Authority
        What signs.
    csr_pem : bytes
        The request (PKCS #10), from anywhere. Its names and extensions are ignored.
    name : str
        The device's name, which becomes the certificate's common name.

    Returns
    -------
    bytes
        The certificate as PEM.

    Raises
    ------
    WireError
        If it is no request, too long, not signed by its own key, or its key is neither P-256 nor
        Ed25519.
    InputError
        If the name is not allowed.
    """
    check_name(name)
    if len(csr_pem) > LARGEST_REQUEST:
        raise WireError(f"a request of {len(csr_pem)} bytes; allowed: up to {LARGEST_REQUEST}")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        public_key, signed = request.public_key(), request.is_signature_valid
    except _NOT_READ:
        raise WireError("not a request for a certificate (PKCS #10 in PEM)") from None
    if not signed:
        raise WireError("the request is not signed by its own key")
    if not _may_sign_in(public_key):
        raise WireError("the key is neither P-256 nor Ed25519")
    return authority.sign(name, public_key, ExtendedKeyUsageOID.CLIENT_AUTH)


def new_request(name: str) -> tuple[bytes, bytes]:
    """Make a device's key (P-256) and the request to sign it; return both as PEM, the key first."""
    check_name(name)
    key = new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    return key_pem(key), request.sign(key, SHA256()).public_bytes(Encoding.PEM)


def new_key() -> PrivateKey:
    """Return a new private key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), without a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_name(name: str) -> None:
    """Check a device's name, which is also its folder's.

    Raises
    ------
    InputError
        If it is not allowed.
    """
    if not _NAME.fullmatch(name):
        allowed = "1 to 63 letters of a to z, digits, '-', '_' and '.', a letter or digit first"
        raise not_allowed("the device's name", name, allowed)


def read_authority(folder: Path) -> x509.Certificate:
    """Return the certificate of a folder's authority; the errors are :meth:`Authority.load`'s."""
    try:
        return read_certificate(folder / AUTHORITY)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {AUTHORITY}; allowed: a folder that `mest-fed certs new` made"
        ) from None


def read_certificate(path: Path) -> x509.Certificate:
    """Read a file of one certificate.

    Raises
    ------
    InputError
        If it cannot be read, or is none.
    FileNotFoundError
        If it is not there.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        # The library reads these where they are first asked for.
        _ = certificate.subject, certificate.extensions, certificate.public_key()
        return certificate
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except _NOT_READ:
        raise InputError(f"{path} is not a certificate in PEM") from None


def has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Say whether an authority has signed a certificate itself."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _read_key(path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if not _may_sign_in(key.public_key()):
            raise ValueError
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except _NOT_READ:
        raise InputError(
            f"{path} is not a private key in PEM, P-256 or Ed25519, without a passphrase"
        ) from None
    return key  # type: ignore[return-value]  # the check of its public key says so


def _may_sign_in(public_key: Any) -> bool:
    """Whether a key is of one of the two kinds that devices have."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return isinstance(public_key.curve, ec.SECP256R1)
    return isinstance(public_key, ed25519.Ed25519PublicKey)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Any, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    others = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    others |= {"encipher_only": False, "decipher_only": False}
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **others)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _public_der(key: Any) -> bytes:
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def _now() -> datetime:
    return datetime.now(UTC)
