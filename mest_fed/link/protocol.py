"""What both sides of the edge link hold to: its version, its limits, and how a call is refused."""

import re
from collections.abc import Mapping
from typing import Any

from mest_fed.errors import MestFedError

#: Version of the protocol.
VERSION = 1
#: Chunks stay below what a node accepts as a message.
LEAST_CHUNK, LARGEST_CHUNK = 1 << 10, 1 << 20
#: Without TLS, on one machine, a node says its name in this header of each call.
NODE_HEADER = "mest-node"
#: The server's own refusals have this header; others are of gRPC, or of another server.
SAID_HEADER = "mest-said"
#: With a refusal of a budget that fits no plan: the bytes that would do.
NEEDS_HEADER = "mest-needs"
SESSION_BYTES, DIGEST_BYTES = 16, 32
LONGEST_ID, LONGEST_REASON, LONGEST_TOML, LARGEST_SCALARS = 64, 300, 16 << 10, 1 << 20
LONGEST_TOKEN, LONGEST_REQUEST, LONGEST_RUN = 256, 8 << 10, 1 << 20
MOST_OBJECTS, MOST_METRICS, MOST_NUMBERS = 16, 256, 4096
MOST_CAPABILITIES, MOST_GROUPS, MOST_SCALARS = 64, 512, 1024
#: Bytes that a message may have beside the data of a chunk, and those of a reply to Register.
MESSAGE_ROOM, LARGEST_REPLY = 64 << 10, 2 << 20
MOST_EXAMPLES, MOST_AT_ONCE, LARGEST_INTEGER = 1 << 40, 1 << 20, 1 << 63
_LONGEST_WORK = 1e9
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


class Refusal(MestFedError):
    """A call that is not granted.

    Parameters
    ----------
    code : str
        Name of the gRPC status; ``mest_link.proto`` says what each means.
    text : str
        Why, for people.
    logged : bool
        Whether the log has said so already.
    needs : int
        Bytes of budget that would do, where that is the reason.
    cause : str
        For the log alone: what the caller is not told.
    """

    def __init__(
        self, code: str, text: str, *, logged: bool = False, needs: int = 0, cause: str = ""
    ) -> None:
        super().__init__(text)
        self.code, self.logged, self.needs, self.cause = code, logged, needs, cause


def malformed(text: str) -> Refusal:
    """Return the refusal of a message that is not as the protocol says."""
    return Refusal("INVALID_ARGUMENT", text)


def as_reason(text: str) -> str:
    """Return a text as the reason of a failure: one printable line, not too long."""
    line = " ".join("".join(it if it.isprintable() else " " for it in text).split())
    return (
        line
        if len(line) <= LONGEST_REASON
        else line[: LONGEST_REASON - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def check_name(key: str, name: str) -> None:
    """Raise :class:`Refusal` unless a name is as the protocol says."""
    if not _NAME.fullmatch(name):
        raise malformed(f"{key} = {name[:80]!r} is no name: 1 to 64 of A-Z a-z 0-9 . _ -")


def check_digest(digest: bytes) -> None:
    """Raise :class:`Refusal` unless a digest is one."""
    if len(digest) != DIGEST_BYTES:
        raise malformed(f"a digest has {DIGEST_BYTES} bytes, not {len(digest)}")


def check_id(name: str) -> None:
    """Raise :class:`Refusal` unless an instruction's id is one."""
    if not 0 < len(name) <= LONGEST_ID or not name.isprintable():
        raise malformed(f"the id of an instruction has 1 to {LONGEST_ID} printable characters")


def check_names(key: str, values: Mapping[str, Any], most: int) -> None:
    """Raise :class:`Refusal` if there are too many values, or a name of theirs is none."""
    if len(values) > most:
        raise malformed(f"there are more than {most} {key}")
    for name in values:
        check_name(f"a name in {key}", name)


def check_whole(key: str, value: int, most: int, *, least: int = 0) -> None:
    """Raise :class:`Refusal` unless a whole number is in its range."""
    if not least <= value <= most:
        raise malformed(f"{key} = {value} is not a whole number from {least} to {most}")


def check_seconds(key: str, value: float) -> None:
    """Raise :class:`Refusal` unless a time is one."""
    if not 0 <= value <= _LONGEST_WORK:
        raise malformed(f"{key} = {value!r} is not a number from 0 to {_LONGEST_WORK:g}")
