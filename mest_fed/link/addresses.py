"""Addresses of the edge link, for both sides. Without TLS it stays on one machine."""

import errno
import ipaddress
import socket

from mest_fed.errors import InputError, not_allowed
from mest_fed.units import address_allowed, is_port

#: What is allowed, by why an address cannot be listened on.
_FREE = {
    errno.EADDRINUSE: "a port that no other process has",
    errno.EADDRNOTAVAIL: "an address of this machine, such as 0.0.0.0 for all of them",
    errno.EACCES: "a port from 1024, which needs no rights",
}


def check_address(
    address: str, *, insecure: bool, key: str = "address", least_port: int = 0
) -> str:
    """Return an address that may be listened on, or connected to.

    Parameters
    ----------
    address : str
        ``host:port``; an IPv6 host stands in brackets.
    insecure : bool
        Whether there is no TLS.
    key : str
        What a person calls it.
    least_port : int
        1 where it is connected to; 0 is any free port, to listen on.

    Raises
    ------
    InputError
        If it is none, or there is no TLS and the host is not this machine.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not is_port(port, least_port):
        raise not_allowed(key, address, address_allowed("127.0.0.1:9443 or [::1]:9443", least_port))
    if insecure and not _is_loopback(bare):
        raise InputError(
            f"{key} = {address!r} is not allowed without TLS; allowed: loopback addresses, such"
            " as 127.0.0.1:9443"
        )
    return address


def check_free(address: str, key: str) -> None:
    """Refuse an address that this machine cannot listen on now.

    Parameters
    ----------
    address : str
        ``host:port``, as :func:`check_address` allows it.
    key : str
        What a person calls it.

    Raises
    ------
    InputError
        Which of host and port is wrong, and why.
    """
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        allowed = "a host that this machine knows, such as 0.0.0.0 for all of its addresses"
        raise not_allowed(key, address, allowed) from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            allowed = _FREE.get(error.errno or 0, "an address that this machine can listen on")
            reason = error.strerror or "it cannot be had"
            raise not_allowed(key, address, f"{allowed} ({reason})") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
