"""Who a node is: its certificate, from files or by enrolment."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from mest_fed.errors import InputError
from mest_fed.link.node.channel import Patience
from mest_fed.link.node.store import NodeFolder
from mest_fed.link.node.tls import NodeTls

log = logging.getLogger("mest_fed.node")

CERTIFICATE, KEY, AUTHORITY = "node.pem", "node.key", "authority.pem"


def node_tls(
    options: argparse.Namespace, folder: NodeFolder, name: str, patience: Patience
) -> NodeTls:
    """Return what the node shows and whom it believes; enrol if it has no certificate yet.

    Raises
    ------
    InputError
        If files are missing, or options of enrolment are.
    RefusedError
        If the server does not take the token.
    """
    if options.certificates:
        if options.name is not None:
            log.info("--name is not used: the certificate says who this node is")
        return NodeTls(*(_read(Path(options.certificates) / it) for it in _FILES))
    kept = [folder.read(it) for it in _FILES]
    if all(kept):
        if options.enrol:
            log.info("it has its certificate in --state: --enrol, --token and --name are not used")
        return NodeTls(*(it for it in kept if it is not None))
    if not options.enrol:
        raise InputError(
            "the node has no certificate; allowed: --certificates FOLDER, --enrol HOST:PORT with "
            "--token and --authority, or --insecure on loopback"
        )
    lacking = [] if options.token else ["--token TOKEN, or the variable MEST_TOKEN"]
    lacking += [] if options.authority else ["--authority FILE"]
    if lacking:
        raise InputError(f"--enrol needs {'; and '.join(lacking)}")
    return _enrol(options, folder, name, patience)


_FILES = (CERTIFICATE, KEY, AUTHORITY)


def _enrol(
    options: argparse.Namespace, folder: NodeFolder, name: str, patience: Patience
) -> NodeTls:
    # Both are needed once: a node that has its certificate holds no library of certificates.
    try:
        from mest_fed.link.certificates import new_request
    except ModuleNotFoundError as error:
        package = (error.name or "cryptography").partition(".")[0]
        raise InputError(
            f"--enrol needs {package}, which is not installed; run: pip install cryptography, "
            "or give --certificates FOLDER, which mest-fed certs node writes"
        ) from None
    from mest_fed.link.node.enrolling import enrol

    authority = _read(Path(options.authority))
    key, request = new_request(name)
    certificate, authority = enrol(
        options.enrol,
        options.token,
        request,
        name,
        authority=authority,
        patience=replace(patience, call_seconds=60.0),
    )
    folder.write(KEY, key, secret=True)
    folder.write(AUTHORITY, authority)
    folder.write(CERTIFICATE, certificate)
    return NodeTls(certificate, key, authority)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
