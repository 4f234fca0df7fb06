"""What keeps a device from its SuperLink: each cause as one line, and whether it may pass."""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mest_fed.errors import InputError, MestFedError, RefusedError

if TYPE_CHECKING:
    from mest_fed.cli.superlink import Link

#: A node's clock may be so many seconds ahead of the server's, and so many behind.
AHEAD, BEHIND = 5, 305
#: X509_V_ERR_CERT_NOT_YET_VALID of <openssl/x509_vfy.h>.
_NOT_YET_VALID = 9


class PassingError(RefusedError):
    """What keeps a device from its SuperLink now may pass by itself."""


class UnreachableError(PassingError):
    """No SuperLink answers; one may later."""


class ClockError(PassingError):
    """The clock is wrong; a board without a battery sets it once it has a network."""


def because(link: "Link", error: Exception) -> MestFedError:
    """Return what a failed call means, by the kinds of its causes."""
    import httpx

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code == _NOT_YET_VALID:
                return ClockError(
                    f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; the "
                    f"certificate of {link.address} is not valid yet then"
                )
            return InputError(
                f"{link.address} cannot be verified by --root-certificates = "
                f"{link.certificates!r}: {cause.verify_message or cause.reason}; allowed: the "
                "certificate of the authority that signed the SuperLink's for this host name, "
                "both of them valid at this machine's time"
            )
        if isinstance(cause, ssl.SSLError):
            return InputError(
                f"{link.address} does not speak TLS ({cause.reason}); allowed: the port of a "
                "SuperLink with TLS, or --insecure instead of --root-certificates"
                f"{by_proxy(link)}"
            )
    hint = "" if link.certificates else "; if it speaks TLS: --root-certificates FILE"
    if isinstance(error, httpx.RemoteProtocolError):
        line = f"{link.address} answers, but not as a SuperLink does{hint}{by_proxy(link)}"
        return RefusedError(line)
    if not isinstance(error, httpx.ReadError):
        hint = ""
    reasons = (cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror)
    return UnreachableError(
        f"no SuperLink at {link.address}: {next(reasons, reason_of(error))}{hint}{by_proxy(link)}"
    )


def by_proxy(link: "Link") -> str:
    """Return what is to be added to an error where a proxy was asked; empty where none was."""
    if not (proxy := link.proxy()):
        return ""
    try:  # without the password that may be in it
        place = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        proxy = f"{place.hostname}:{place.port}" if place.port else str(place.hostname)
    except ValueError:
        proxy = "that of the environment"
    return f"; the call goes through the proxy {proxy}: NO_PROXY={link.host} keeps it off"


def unauthorized(date: str | None, now: datetime) -> RefusedError:
    """Return what HTTP status 401 means, by the server's date and this machine's."""
    try:
        ahead = (now - parsedate_to_datetime(date or "")).total_seconds()
    except (TypeError, ValueError):
        ahead = 0.0
    # The header has whole seconds, so the difference is known to one.
    if not -BEHIND < ahead < AHEAD - 1:
        way = "ahead of" if ahead > 0 else "behind"
        return ClockError(
            f"this machine's clock is about {abs(ahead):.0f} s {way} the SuperLink's; allowed: "
            f"up to {AHEAD} s ahead and {BEHIND} s behind"
        )
    return RefusedError("the SuperLink refuses this device's signature (HTTP status 401)")


def unexpected(link: "Link", status: int) -> RefusedError:
    """Return what a status means that no SuperLink has."""
    return RefusedError(
        f"{link.address} answers HTTP status {status}, as no SuperLink of Flower 1.41 or 1.42 "
        f"does; look whether the port is its own (8000 if nothing is said){by_proxy(link)}"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
