"""Of a folder of ``mest-fed certs``: which devices enrolled, and which are refused.

``enrolled`` holds a copy of each certificate that a node got with a token. ``refused.json`` holds
digests of certificates that take no part, though the authority has signed them. A server reads it
anew when it has changed.
"""

import hashlib
import json
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mest_fed.errors import InputError
from mest_fed.strict_json import read_json
from mest_fed.system.files import write_file

if TYPE_CHECKING:
    from mest_fed.link.server.nodes import Identity

NODES, ENROLLED, REFUSED = "nodes", "enrolled", "refused.json"
#: Hexadecimal digits of a digest in the name of a file.
_DIGITS = 8


def fingerprint_of(pem: bytes) -> str:
    """Return the SHA-256 of a certificate, as 64 hexadecimal digits."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).hexdigest()


def keep_enrolled(folder: Path, name: str, pem: bytes) -> Path:
    """Keep a copy of the certificate that a node got; return its file.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    path = folder / ENROLLED / f"{name}-{fingerprint_of(pem)[:_DIGITS]}.pem"
    try:
        path.parent.mkdir(exist_ok=True)
        write_file(path, pem)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return path


def certificates_of(folder: Path, name: str) -> int:
    """Return how many certificates of a folder have a device's name, those that ended included."""
    enrolled = (folder / ENROLLED).glob(f"{name}-{'?' * _DIGITS}.pem")
    return len(list(enrolled)) + (folder / NODES / name).is_dir()


def read_refused(folder: Path) -> dict[str, str]:
    """Return the certificates that are refused: fingerprint -> the device's name.

    Raises
    ------
    InputError
        If the file cannot be read, or is damaged.
    """
    path = folder / REFUSED
    if not path.exists():
        return {}
    table = read_json(path, dict)
    if not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{path} is damaged: a device's name is no text")
    return {str(digest): str(name) for digest, name in table.items()}


def write_refused(folder: Path, refused: Mapping[str, str]) -> None:
    """Replace the certificates that are refused.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    path = folder / REFUSED
    try:
        write_file(path, (json.dumps(dict(refused), indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


class Admission:
    """Says at each call whether a certificate takes part; may be asked from any thread.

    Parameters
    ----------
    folder : Path
        Of ``mest-fed certs``.

    Raises
    ------
    InputError
        If what is refused cannot be read. Later, what was read last holds then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._stamp, self._refused = self._look(), read_refused(folder)

    def __call__(self, identity: "Identity") -> bool:
        """Return whether the certificate is not refused."""
        stamp = self._look()
        with self._lock:
            if stamp != self._stamp:
                try:
                    self._refused = read_refused(self._folder)
                    self._stamp = stamp
                except InputError:
                    pass
            return identity.fingerprint.hex() not in self._refused

    def _look(self) -> tuple[int, int] | None:
        try:
            found = (self._folder / REFUSED).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
