"""Addresses of the edge link, for both sides. Without TLS it stays on one machine."""

import ipaddress

from mest_fed.errors import InputError, not_allowed

_MOST_PORTS = 65535


def check_address(address: str, *, insecure: bool, key: str = "address") -> str:
    """Return an address that may be listened on, or connected to.

    Parameters
    ----------
    address : str
        ``host:port``; an IPv6 host stands in brackets.
    insecure : bool
        Whether there is no TLS.
    key : str
        What a person calls it.

    Raises
    ------
    InputError
        If it is none, or there is no TLS and the host is not this machine.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not _is_port(port):
        raise not_allowed(key, address, "HOST:PORT, such as 127.0.0.1:9443 or [::1]:9443")
    if insecure and not _is_loopback(bare):
        raise InputError(
            f"{key} = {address!r} is not allowed without TLS; allowed: loopback addresses, such"
            " as 127.0.0.1:9443"
        )
    return address


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:6]) <= _MOST_PORTS


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
