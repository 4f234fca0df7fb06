"""Whether a SuperLink can be reached and takes this device, found out before the node starts.

Flower's node ends without a reason when the SuperLink refuses it: with status 0 after a 401. So
the same calls are made here first, with the same headers, over the same HTTP client, and taken
back. What may pass by itself is waited for. ``python -m mest_fed.cli.superlink JSON`` makes them
once more, for a supervisor whose node has ended by itself.

The calls are those of the Fleet API of Flower 1.41 and 1.42, which Flower does not publish; a test
holds the numbers and names here against the installed package and a real SuperLink.
"""

import base64
import json
import re
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import Any
from urllib.request import getproxies, proxy_bypass

from mest_fed.cli.app import OK, REFUSED, WRONG_INPUT
from mest_fed.cli.environment import LOOPBACK
from mest_fed.cli.link_errors import (
    PassingError,
    UnreachableError,
    because,
    by_proxy,
    reason_of,
    unauthorized,
    unexpected,
)
from mest_fed.described import kind_of
from mest_fed.errors import InputError, RefusedError, not_allowed
from mest_fed.strict_json import parse_json
from mest_fed.units import address_allowed, is_port

#: Codes of the Fleet API's errors (flwr.supercore.error.ApiErrorCode).
REGISTRATION_DISABLED, INVALID_INTERVAL, ACTIVATION_FAILED = 2001, 2003, 2004
#: Seconds of the shortest interval between heartbeats that a SuperLink takes, and of two of a
#: node's: so long one that was cut off counts as connected.
SHORTEST_INTERVAL, CUT_OFF = 10.0, 60
#: Seconds for one call, and between two: doubled from the first to the last, as Flower's own node.
TIMEOUT, FIRST_PAUSE, LAST_PAUSE = 10.0, 1.0, 20.0
_BUSY = (502, 503, 504)


@dataclass(frozen=True)
class Link:
    """How a device reaches its SuperLink.

    Parameters
    ----------
    address : str
        HOST:PORT.
    certificates : str
        Path of the PEM file to know the SuperLink by; empty: without TLS.
    key : str
        Path of the device's private key; empty: it makes one and registers itself.
    """

    address: str
    certificates: str = ""
    key: str = ""

    @classmethod
    def read(
        cls, superlink: str, insecure: bool, certificates: Path | None, key: Path | None
    ) -> "Link":
        """Read the options as they were typed.

        Raises
        ------
        InputError
            If one is nonsense, a file is not what it should be, or they exclude each other.
        """
        host, _, port = superlink.rpartition(":")
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", host) or not is_port(port):
            allowed = address_allowed("192.168.1.10:8000")
            raise not_allowed("--superlink", superlink, allowed)
        if insecure == (certificates is not None):
            given = "both" if insecure else "neither"
            raise InputError(
                f"--insecure, --root-certificates: {given} of them is not allowed; "
                "allowed: either --insecure or --root-certificates FILE"
            )
        if insecure and key is not None:
            raise InputError(
                "--insecure beside --auth-key is not allowed; allowed: --root-certificates FILE, "
                "since Flower authenticates nodes over TLS alone"
            )
        link = cls(superlink, str(certificates or ""), str(key or ""))
        if certificates is not None:
            link.context()
        if key is not None:
            link.private_key()
        return link

    def options(self) -> list[str]:
        """Return the arguments of Flower's node."""
        options = ["--superlink", self.address]
        if self.certificates:
            options += ["--root-certificates", self.certificates]
        else:
            options += ["--insecure"]
        return options + (["--auth-supernode-private-key", self.key] if self.key else [])

    @property
    def host(self) -> str:
        """The host of the address."""
        return self.address.rpartition(":")[0].strip("[]")

    def proxy(self) -> str:
        """Return the proxy that the environment has calls go through; empty: none."""
        proxies = getproxies()
        if self.host in LOOPBACK or proxy_bypass(self.host):
            return ""
        return proxies.get("https" if self.certificates else "http") or proxies.get("all", "")

    def context(self) -> ssl.SSLContext | bool:
        """Return what verifies the server, made as Flower's node makes it; False without TLS."""
        if not self.certificates:
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            text = Path(self.certificates).expanduser().read_bytes().decode("ascii")
            context.load_verify_locations(cadata=text)
        except (OSError, UnicodeError, ValueError) as error:  # ssl.SSLError is an OSError
            allowed = f"a PEM file of certificates ({reason_of(error)})"
            raise not_allowed("--root-certificates", self.certificates, allowed) from None
        return context

    def private_key(self) -> Any:
        """Return the device's private key; a new one where it has none."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key

        if not self.key:
            return ec.generate_private_key(ec.SECP384R1())
        try:
            key = load_ssh_private_key(Path(self.key).expanduser().read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError(f"it is {kind_of(key)}")
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            allowed = (
                "an OpenSSH file of an elliptic-curve private key without passphrase, as "
                f"`ssh-keygen -t ecdsa -b 384` makes it ({reason_of(error)})"
            )
            raise not_allowed("--auth-key", self.key, allowed) from None
        return key


def wait_for_superlink(link: Link, wait: float) -> None:
    """Wait until a SuperLink answers and takes this device; say once what is waited for.

    Parameters
    ----------
    link : Link
        How to reach it.
    wait : float
        Seconds; 0 asks once.

    Raises
    ------
    InputError
        If what was typed does not fit the server.
    RefusedError
        If the SuperLink refuses the device.
    PassingError
        If none answers in time, or what may pass by itself has not.
    """
    end, said, draw = time.monotonic() + wait, False, SystemRandom()
    for pause in _pauses():
        try:
            return ask(link)
        except PassingError as error:
            left = end - time.monotonic()
            if left <= 0:
                raise
            if not said:
                print(f"{error}; waiting for up to {wait:g} s", file=sys.stderr, flush=True)
            said = True
        time.sleep(min(left, draw.uniform(pause / 2, pause)))
    raise AssertionError("the pauses have no end")


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, LAST_PAUSE)


def ask(link: Link) -> None:
    """Ask a SuperLink once whether it takes this device.

    A registered key is activated, and deactivated again. Without a key one is registered, and
    unregistered again.

    Raises
    ------
    InputError, RefusedError, PassingError
        As :func:`wait_for_superlink`.
    """
    key = link.private_key()
    if link.key:
        _activate(link, key)
    else:
        _register(link, key)


def _activate(link: Link, key: Any) -> None:
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        ActivateNodeResponse,
        DeactivateNodeRequest,
    )

    # Both calls fail alike. With an interval that is none, which the server looks at after the
    # key, only a key that it does not know does.
    request = ActivateNodeRequest(public_key=_public_bytes(key), heartbeat_interval=0)
    status, code, _ = _post(link, key, "activate-node", request)
    if (status, code) == (412, ACTIVATION_FAILED):
        raise RefusedError(
            f"the SuperLink does not know the key in {link.key}; register it there first: "
            "flwr supernode register KEY.pub"
        )
    if code != INVALID_INTERVAL:
        raise unexpected(link, status)
    request.heartbeat_interval = SHORTEST_INTERVAL
    status, code, body = _post(link, key, "activate-node", request)
    if (status, code) == (412, ACTIVATION_FAILED):
        raise PassingError(
            f"a device with the key in {link.key} is connected: another one, or this one until it "
            f"was cut off, which the SuperLink notices within {CUT_OFF} s"
        )
    if status != 200:
        raise unexpected(link, status)
    node_id = ActivateNodeResponse.FromString(body).node_id
    _post(link, key, "deactivate-node", DeactivateNodeRequest(node_id=node_id))


def _register(link: Link, key: Any) -> None:
    from flwr.proto.fleet_pb2 import (
        RegisterNodeFleetRequest,
        RegisterNodeFleetResponse,
        UnregisterNodeFleetRequest,
    )

    request = RegisterNodeFleetRequest(public_key=_public_bytes(key))
    status, code, body = _post(link, key, "register-node", request)
    if (status, code) == (412, REGISTRATION_DISABLED):
        raise RefusedError(
            "the SuperLink takes registered keys alone (--enable-supernode-auth); give this "
            "device's with --auth-key FILE"
        )
    if status != 200:
        raise unexpected(link, status)
    node_id = RegisterNodeFleetResponse.FromString(body).node_id
    _post(link, key, "unregister-node", UnregisterNodeFleetRequest(node_id=node_id))


def _post(link: Link, key: Any, name: str, message: Any) -> tuple[int, int, bytes]:
    """Make one call; return status, Flower's code of an error (or 0), and the body."""
    import httpx
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    now = _now()
    signature = key.sign(now.isoformat().encode("ascii"), ec.ECDSA(hashes.SHA256()))
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": base64.b64encode(_public_bytes(key)).decode("ascii"),
        "flwr-timestamp": now.isoformat(),
        "flwr-signature": base64.b64encode(signature).decode("ascii"),
    }
    scheme = "https" if link.certificates else "http"
    url = f"{scheme}://{link.address}/v1/fleet/{name}"
    try:
        environment = link.host not in LOOPBACK  # whose proxies are taken
        with httpx.Client(verify=link.context(), timeout=TIMEOUT, trust_env=environment) as client:
            reply = client.post(url, content=message.SerializeToString(), headers=headers)
    except httpx.InvalidURL as error:
        raise not_allowed("--superlink", link.address, f"HOST:PORT ({error})") from None
    except httpx.TransportError as error:
        raise because(link, error) from None
    if reply.status_code in _BUSY:
        raise UnreachableError(
            f"{link.address} answers HTTP status {reply.status_code}{by_proxy(link)}"
        )
    if reply.status_code == 401:
        raise unauthorized(reply.headers.get("date"), now)
    return reply.status_code, _code(reply.content), reply.content


def _now() -> datetime:
    return datetime.now(UTC)


def _public_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def _code(body: bytes) -> int:
    try:
        code = parse_json(body, "the answer", dict).get("code")
    except InputError:
        return 0
    return code if isinstance(code, int) else 0


def _main(text: str) -> int:
    try:
        ask(Link(**json.loads(text)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    return OK


def as_argument(link: Link) -> str:
    """Write a link for ``python -m mest_fed.cli.superlink``."""
    return json.dumps(asdict(link))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
