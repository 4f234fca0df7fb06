"""The folder of ``mest-fed certs``: which files are in it, and when each is made or made anew.

``authority.pem`` and ``authority.key`` sign. ``server.pem`` and ``server.key`` are the server's.
``nodes`` has a folder for each device, with what is copied onto it, and ``enrolled`` what those got
that have a token. Private keys have mode 0600.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mest_fed.errors import InputError, not_allowed
from mest_fed.link.certificates import (
    AUTHORITY,
    AUTHORITY_KEY,
    Authority,
    check_name,
    has_signed,
    key_pem,
    new_key,
    new_request,
    read_authority,
    read_certificate,
    sign_request,
)
from mest_fed.link.refused import ENROLLED, NODES, read_refused, write_refused
from mest_fed.system.files import write_file

SERVER, SERVER_KEY = "server.pem", "server.key"
NODE, NODE_KEY = "node.pem", "node.key"
#: A device's key pair for Flower's node authentication.
FLOWER_KEY, FLOWER_PUBLIC = "supernode", "supernode.pub"
#: Days before its end from which on a certificate is to be renewed.
DUE_DAYS = 30
#: What is a device's.
_OF_DEVICES = ("node", "enrolled")
#: Always among the hosts of a server.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Letters that a common name may have.
_LONGEST_NAME = 64
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"


@dataclass(frozen=True)
class Entry:
    """A certificate of the folder.

    Parameters
    ----------
    path : Path
        Its file.
    what : str
        ``authority``, ``server``, ``node``, or ``enrolled`` of a node that got it with a token.
    certificate : x509.Certificate
        What is in it.
    ours : bool
        Whether the folder's authority has signed it.
    refused : bool
        Whether the server refuses it.
    """

    path: Path
    what: str
    certificate: x509.Certificate
    ours: bool
    refused: bool = False

    @property
    def device(self) -> str:
        """The device's name; empty where it is none's."""
        return _common_name(self.certificate) if self.what in _OF_DEVICES else ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as hexadecimal digits."""
        return self.certificate.fingerprint(SHA256()).hex()

    @property
    def end(self) -> datetime:
        """When it expires."""
        return self.certificate.not_valid_after_utc

    @property
    def days(self) -> int:
        """How many whole days it is still valid; less than 0: it has expired."""
        return (self.end - datetime.now(UTC)) // timedelta(days=1)

    @property
    def is_due(self) -> bool:
        """Whether it is to be renewed."""
        return not self.ours or self.days < DUE_DAYS

    @property
    def names(self) -> list[str]:
        """Whom it is for: hosts, or the name of a device."""
        return hosts_of(self.certificate) or [_common_name(self.certificate)]


def make_authority(folder: Path, hosts: Sequence[str], *, force: bool) -> None:
    """Make a folder with an authority and a server's certificate for hosts and loopback.

    Raises
    ------
    InputError
        If a host is none, the folder cannot be written, or it has one of the files already and
        ``force`` is not given.
    """
    names = _server_names(hosts)
    files = [folder / name for name in (AUTHORITY, AUTHORITY_KEY, SERVER, SERVER_KEY)]
    _check_new(files, force)
    authority, key = Authority.new(), new_key()
    certificate = _sign_server(authority, key.public_key(), hosts, names)
    _write(files[1], key_pem(authority.key), private=True)
    _write(files[0], authority.pem())
    _write(files[3], key_pem(key), private=True)
    _write(files[2], certificate)


def add_node(folder: Path, name: str, *, force: bool) -> Path:
    """Make what a device needs; return its folder.

    Raises
    ------
    InputError
        If the name is not allowed, the folder's authority cannot sign, or the device has files
        already and ``force`` is not given.
    """
    check_name(name)
    authority, node = Authority.load(folder), folder / NODES / name
    files = [node / each for each in (NODE, NODE_KEY, FLOWER_KEY, FLOWER_PUBLIC)]
    _check_new(files, force)
    key, request = new_request(name)
    private, public = new_flower_keys(name)
    _write(files[1], key, private=True)
    _write(files[0], sign_request(authority, request, name))
    _write(files[2], private, private=True)
    _write(files[3], public)
    _write(node / AUTHORITY, authority.pem())
    return node


def renew(folder: Path, hosts: Sequence[str], *, force: bool) -> list[Path]:
    """Sign the same keys again where a certificate is due; return the files written.

    Parameters
    ----------
    folder : Path
        The folder.
    hosts : sequence of str
        The server's hosts from now on; as before if empty.
    force : bool
        Whether those are renewed, too, that are not due.

    Raises
    ------
    InputError
        If the authority cannot sign, a host is none, or a file cannot be read or written.
    """
    authority, written = Authority.load(folder), []
    for entry in entries(folder):
        changed = entry.what == "server" and bool(hosts)
        # What a node enrolled for is on the device alone, which asks for another.
        if entry.what in ("authority", "enrolled") or entry.refused:
            continue
        if not (entry.is_due or force or changed):
            continue
        key = entry.certificate.public_key()
        if entry.what == "server":
            wanted = list(hosts or entry.names)
            signed = _sign_server(authority, key, wanted, _server_names(wanted))
        else:
            name = entry.path.parent.name
            check_name(name)
            signed = authority.sign(name, key, ExtendedKeyUsageOID.CLIENT_AUTH)
            if not entry.ours:
                written.append(_write(entry.path.with_name(AUTHORITY), authority.pem()))
        written.append(_write(entry.path, signed))
    return written


def entries(folder: Path) -> list[Entry]:
    """Return the certificates of a folder: the authority, the server's, the devices' by name.

    Raises
    ------
    InputError
        If it holds no authority, or a file is no certificate or cannot be read.
    """
    authority = read_authority(folder)
    found = [Entry(folder / AUTHORITY, "authority", authority, True)]
    for path, what in _signed_files(folder):
        certificate = read_certificate(path)
        found.append(Entry(path, what, certificate, has_signed(authority, certificate)))
    refused = read_refused(folder)
    return [replace(entry, refused=entry.fingerprint in refused) for entry in found]


def refuse(folder: Path, name: str, *, undo: bool) -> int:
    """Have the server refuse all certificates of a device, or take them again; return how many.

    Raises
    ------
    InputError
        If no device of the folder has the name, or the file cannot be read or written.
    """
    devices = [entry for entry in entries(folder) if entry.device]
    mine = {entry.fingerprint: name for entry in devices if entry.device == name}
    if not mine:
        known = ", ".join(sorted({entry.device for entry in devices})) or "none has enrolled yet"
        raise not_allowed("NAME", name, f"a device of {folder}: {known}")
    refused = read_refused(folder)
    if undo and not mine.keys() & refused.keys():
        raise not_allowed("--undo", name, f"a device that is refused: {_names(refused)}")
    others = {digest: whose for digest, whose in refused.items() if digest not in mine}
    write_refused(folder, others if undo else others | mine)
    return len(mine)


def _names(refused: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(refused.values()))) or "there is none"


def _signed_files(folder: Path) -> Iterator[tuple[Path, str]]:
    if (folder / SERVER).exists():
        yield folder / SERVER, "server"
    for path in sorted((folder / NODES).glob(f"*/{NODE}")):
        yield path, "node"
    for path in sorted((folder / ENROLLED).glob("*.pem")):
        yield path, "enrolled"


def new_flower_keys(name: str) -> tuple[bytes, bytes]:
    """Make a pair for Flower's node authentication (P-384, OpenSSH): private, public."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {name}\n".encode("ascii")


def host_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it.

    Raises
    ------
    InputError
        If it is neither a host name nor an address that one connects to.
    """
    allowed = "a host name or an IP address, without port, such as 192.168.1.10 or hub.local"
    try:
        address = ip_address(host)
    except ValueError:
        labels = host.split(".")
        # Where the last part is a number it was to be an address.
        whole = all(re.fullmatch(_LABEL, label) for label in labels)
        if not whole or len(host) > 253 or labels[-1].isdecimal():
            raise not_allowed("--host", host, allowed) from None
        return x509.DNSName(host)
    if address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None):
        raise not_allowed("--host", host, allowed)
    return x509.IPAddress(address)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the hosts that a certificate names, in its order."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    kinds = (x509.DNSName, x509.IPAddress)
    return [str(each.value) for each in found.value if isinstance(each, kinds)]


def _server_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    return [host_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]


def _sign_server(
    authority: Authority, key: Any, hosts: Sequence[str], names: Sequence[x509.GeneralName]
) -> bytes:
    return authority.sign(hosts[0][:_LONGEST_NAME], key, ExtendedKeyUsageOID.SERVER_AUTH, names)


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_new(files: Sequence[Path], force: bool) -> None:
    try:
        there = [path for path in files if path.exists()]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
    if there and not force:
        raise InputError(f"{there[0]} is there already; allowed: --force, which replaces it")


def _write(path: Path, content: bytes, *, private: bool = False) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "a file is there" if path.parent.is_file() else error.strerror
        raise InputError(f"the folder {path.parent} cannot be made: {why}") from None
    try:
        write_file(path, content, private=private)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return path
