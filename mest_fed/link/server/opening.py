"""How a run opens an edge link: where nodes find it, with which certificates, beside what.

``mest-fed server`` opens one by its options; under a SuperLink, ``deployment.link`` opens one, and
its nodes and Flower's are one fleet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from flwr.serverapp import Grid

from mest_fed.config.sections import DeploymentSection
from mest_fed.errors import InputError, not_allowed
from mest_fed.link.addresses import check_address, check_free
from mest_fed.link.certificates import (
    Authority,
    check_in_time,
    check_pair,
    has_signed,
    read_certificate,
    sign_request,
)
from mest_fed.link.refused import Admission, certificates_of, keep_enrolled
from mest_fed.link.server.edge_server import EdgeServer, ServerTls
from mest_fed.link.server.grid import LinkGrid
from mest_fed.link.server.joint_grid import JointGrid
from mest_fed.link.server.lean_run import LeanRun
from mest_fed.link.tokens import redeem_token
from mest_fed.server.run_log import shown_by_flower
from mest_fed.task import Task
from mest_fed.units import number_of

log = getLogger("mest_fed.link")

#: In a folder of ``mest-fed certs``: what the server shows, and what it believes.
_FILES = ("server.pem", "server.key", "authority.pem")
#: Hosts that stand for all of a machine's.
_ANY = {"0.0.0.0", "[::]"}


class LinkNames(NamedTuple):
    """What a person calls the settings of an edge link."""

    listen: str
    certificates: str
    enrol: str
    insecure: str


OPTIONS = LinkNames("--listen", "--certificates", "--enrol", "--insecure")
KEYS = LinkNames(
    "deployment.link",
    "deployment.link_certificates",
    "deployment.link_enrol",
    "deployment.link_insecure",
)


@dataclass(frozen=True)
class LinkSettings:
    """Where nodes find the server, and how they are known.

    Parameters
    ----------
    listen : str
        ``HOST:PORT`` for nodes; port 0 takes a free one.
    certificates : Path or None
        A folder of ``mest-fed certs``.
    enrol : str
        ``HOST:PORT`` where nodes with a token get certificates; empty for none.
    insecure : bool
        Without certificates, on loopback alone.
    names : LinkNames
        What errors call these.

    Raises
    ------
    InputError
        If an address is none, or there are neither certificates nor ``insecure``, or both.
    """

    listen: str
    certificates: Path | None = None
    enrol: str = ""
    insecure: bool = False
    names: LinkNames = OPTIONS

    def __post_init__(self) -> None:
        names = self.names
        if self.insecure and (self.certificates or self.enrol):
            key = names.certificates if self.certificates else names.enrol
            raise InputError(
                f"{key} = {str(self.certificates or self.enrol)!r} is not allowed beside "
                f"{names.insecure}, which has no certificates; allowed: {names.insecure} alone, "
                f"or {names.certificates} FOLDER, also with {names.enrol} HOST:PORT"
            )
        if not self.insecure and self.certificates is None:
            raise InputError(
                f"an edge link needs {names.certificates} FOLDER (mest-fed certs new), or "
                f"{names.insecure} on loopback"
            )
        check_address(self.listen, insecure=self.insecure, key=names.listen)
        if self.enrol:
            check_address(self.enrol, insecure=False, key=names.enrol)
            if _are_one(self.enrol, self.listen):
                allowed = f"another port than that of {names.listen}"
                raise not_allowed(names.enrol, self.enrol, allowed)

    @classmethod
    def of(cls, deployment: DeploymentSection) -> "LinkSettings":
        """Return what the configuration says."""
        folder = deployment.link_certificates
        return cls(
            deployment.link,
            Path(folder).expanduser() if folder else None,
            deployment.link_enrol,
            deployment.link_insecure,
            KEYS,
        )


def check_link(settings: LinkSettings) -> None:
    """Find what is wrong with a link's files and addresses, before anything is opened.

    Raises
    ------
    InputError
        If a file of the certificates cannot be used, the server's certificate is not valid now, or
        an address cannot be listened on.
    """
    names, folder = settings.names, settings.certificates
    if folder is not None:
        certificate, key, authority = (folder / name for name in _FILES)
        check_pair(certificate, key)
        check_in_time(certificate)
        _check_authority(authority, certificate)
        if settings.enrol:
            Authority.load(folder)
    check_free(settings.listen, names.listen)
    if settings.enrol:
        check_free(settings.enrol, names.enrol)


def open_link(settings: LinkSettings, run: LeanRun) -> EdgeServer:
    """Listen for nodes.

    Parameters
    ----------
    settings : LinkSettings
        Where and how.
    run : LeanRun
        What nodes are told.

    Raises
    ------
    InputError
        If a file of the certificates cannot be read, the server's certificate is not valid now, or
        an address cannot be listened on.
    """
    check_link(settings)
    how: dict[str, Any] = {"describe": run.describe, "program": run.programs}
    folder = settings.certificates
    if folder is None:
        log.warning(
            "%s: without TLS, names are not proved and nothing is encrypted",
            settings.names.insecure,
        )
        return EdgeServer(settings.listen, insecure=True, **how)
    certificate, key, authority = (_read(folder / name) for name in _FILES)
    if settings.enrol:
        how |= {"enrolment_address": settings.enrol, "enrol": _enroller(folder, authority)}
    tls = ServerTls(certificate, key, authority)
    return EdgeServer(settings.listen, tls=tls, admit=Admission(folder), **how)


@contextmanager
def joined_with_link(task: Task, grid: Grid) -> Iterator[Grid]:
    """Join a grid with the edge link that the configuration asks for, and close that at the end.

    Parameters
    ----------
    task : Task
        The run's; ``deployment.link`` is an address.
    grid : Grid
        Of the run: Flower's own.

    Raises
    ------
    InputError
        As :class:`LinkSettings` and :func:`open_link` do.
    """
    config, run = task.config, LeanRun(task)
    with shown_by_flower(log.name), open_link(LinkSettings.of(config.deployment), run) as server:
        log.info("the edge link listens on port %d", server.port)
        link = LinkGrid(server, run, deadline=config.fleet.deadline, joins=grid.run)
        yield JointGrid([grid, link])


def _enroller(
    folder: Path, authority: bytes
) -> Callable[[str, bytes, str], tuple[bytes, bytes] | None]:
    """Return what signs the requests of nodes that have a token."""
    signer = Authority.load(folder)

    def enrol(token: str, request: bytes, name: str) -> tuple[bytes, bytes] | None:
        if not redeem_token(folder, token):
            return None
        certificate = sign_request(signer, request, name)
        others = certificates_of(folder, name)
        kept = keep_enrolled(folder, name, certificate)
        log.info("%s has enrolled (%s)", name, kept)
        if others:
            text = "%s is the name of %s now: mest-fed certs refuse refuses all"
            log.warning(text, name, number_of(others + 1, "certificate"))
        return certificate, authority

    return enrol


def _are_one(address: str, other: str) -> bool:
    """Say whether two addresses cannot be listened on at once."""
    (host, _, port), (others_host, _, others_port) = address.rpartition(":"), other.rpartition(":")
    hosts = {host, others_host}
    return port == others_port != "0" and (len(hosts) == 1 or not hosts.isdisjoint(_ANY))


def _check_authority(authority: Path, certificate: Path) -> None:
    """Find that nodes would not know this server: they believe the authority of the folder."""
    try:
        believed = read_certificate(authority)
    except FileNotFoundError as error:
        raise InputError(f"{authority} cannot be read: {error.strerror}") from None
    if not has_signed(believed, read_certificate(certificate)):
        text = "%s is not signed by %s: nodes that believe this authority refuse the server"
        log.warning(text, certificate, authority.name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
