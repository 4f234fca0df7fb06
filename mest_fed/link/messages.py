"""What the edge link says, as plain objects with their limits; both sides use them.

An object that was made has passed its checks, wherever its values came from.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mest_fed.errors import MestFedError
from mest_fed.schema import FailureKind

#: Version of the protocol.
VERSION = 1
#: Chunks stay below what a node accepts as a message.
LEAST_CHUNK, LARGEST_CHUNK = 1 << 10, 1 << 20
#: Without TLS, on one machine, a node says its name in this header of each call.
NODE_HEADER = "mest-node"
SESSION_BYTES, DIGEST_BYTES = 16, 32
LONGEST_ID, LONGEST_REASON, LONGEST_TOML, LARGEST_SCALARS = 64, 300, 16 << 10, 1 << 20
LONGEST_TOKEN, LONGEST_REQUEST, LONGEST_RUN = 256, 8 << 10, 1 << 20
MOST_OBJECTS, MOST_METRICS, MOST_NUMBERS = 16, 256, 4096
MOST_CAPABILITIES, MOST_GROUPS, MOST_SCALARS = 64, 512, 1024
#: Bytes that a message may have beside the data of a chunk, and those of a reply to Register.
MESSAGE_ROOM, LARGEST_REPLY = 64 << 10, 2 << 20
_MOST_EXAMPLES, _MOST_AT_ONCE, _LARGEST_INTEGER = 1 << 40, 1 << 20, 1 << 63
_LONGEST_WORK = 1e9
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")

Scalar = bool | int | float | str
Metric = float | Sequence[float]
Bytes = bytes | bytearray | memoryview


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
    """

    def __init__(self, code: str, text: str, *, logged: bool = False) -> None:
        super().__init__(text)
        self.code, self.logged = code, logged


def malformed(text: str) -> Refusal:
    """Return the refusal of a message that is not as the protocol says."""
    return Refusal("INVALID_ARGUMENT", text)


class InstructionKind(StrEnum):
    """What a node is to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    FORGET = "forget"
    QUERY = "query"


class ProgramKind(StrEnum):
    """What a compiled program does."""

    STEP = "step"
    FORWARD = "forward"


#: Failures that a node may report; the server finds the others out by itself.
REPORTABLE = (
    FailureKind.OVER_BUDGET,
    FailureKind.OUT_OF_MEMORY,
    FailureKind.NOT_FINITE,
    FailureKind.CLIENT_ERROR,
    FailureKind.WORKER_DIED,
    FailureKind.BATTERY_LOW,
    FailureKind.WENT_AWAY,
    FailureKind.BUSY,
)


@dataclass(frozen=True)
class ObjectRef:
    """An object's SHA-256 (32 bytes), and its length in bytes."""

    sha256: bytes
    size: int

    def __post_init__(self) -> None:
        check_digest(self.sha256)
        _check_whole("size of an object", self.size, _LARGEST_INTEGER - 1)

    @staticmethod
    def of(data: Bytes) -> "ObjectRef":
        """Return what names these bytes."""
        return ObjectRef(hashlib.sha256(data).digest(), memoryview(data).nbytes)


Refs = Mapping[str, ObjectRef]


@dataclass(frozen=True)
class NodeDescription:
    """What a node says of itself when it registers; see ``RegisterRequest`` in the protocol.

    Parameters
    ----------
    name : str
        For people.
    profile_name, profile_toml : str
        One of them: a profile that the server knows, or a profile's text.
    budget_bytes, memory_limit_bytes : int
        Bytes that training may add, and that the process may have; 0 if not known, or no limit.
    examples : int
        That the node has; 0 if it has not read them yet.
    partition : int or None
        Which share of the run's data they are; None for its own.
    capabilities : tuple of str
        For example instruction sets.
    data_kind : str
        Empty: that of the run.
    """

    name: str
    profile_name: str = ""
    profile_toml: str = ""
    budget_bytes: int = 0
    memory_limit_bytes: int = 0
    examples: int = 0
    partition: int | None = None
    capabilities: tuple[str, ...] = ()
    data_kind: str = ""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for key in ("profile_name", "data_kind"):
            if getattr(self, key):
                check_name(key, getattr(self, key))
        if self.profile_name and self.profile_toml:
            raise malformed("a device profile is either a name or a text")
        if len(self.profile_toml.encode()) > LONGEST_TOML:
            raise malformed(f"profile_toml is longer than {LONGEST_TOML} bytes")
        if len(self.capabilities) > MOST_CAPABILITIES:
            raise malformed(f"there are more than {MOST_CAPABILITIES} capabilities")
        for each in self.capabilities:
            check_name("capability", each)
        for key in ("budget_bytes", "memory_limit_bytes"):
            _check_whole(key, getattr(self, key), _LARGEST_INTEGER - 1)
        _check_whole("examples", self.examples, _MOST_EXAMPLES)
        _check_whole("partition", self.partition or 0, _MOST_EXAMPLES)


@dataclass(frozen=True)
class Registration:
    """What a server tells a node that registered; see ``RegisterReply`` in the protocol."""

    session: bytes = field(repr=False)
    node_id: int
    chunk_bytes: int
    heartbeat_seconds: float
    wait_seconds: float
    max_upload_bytes: int
    run_json: str

    def __post_init__(self) -> None:
        _check_whole("node_id", self.node_id, _LARGEST_INTEGER - 1)
        _check_whole("chunk_bytes", self.chunk_bytes, LARGEST_CHUNK, least=LEAST_CHUNK)
        for key in ("heartbeat_seconds", "wait_seconds"):
            _check_seconds(key, getattr(self, key))


@dataclass(frozen=True)
class Instruction:
    """What a node is to do.

    Parameters
    ----------
    id : str
        Unique; at most 64 characters.
    kind : InstructionKind
        What is to be done.
    round : int
        Round of the run.
    deadline_seconds : float
        Seconds until a report comes too late; 0 for no limit.
    scalars : mapping of str to bool, int, float or str
        What it consists of, beside objects.
    objects : mapping of str to ObjectRef
        What the node fetches.
    """

    id: str
    kind: InstructionKind
    round: int = 0
    deadline_seconds: float = 0.0
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    objects: Refs = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.id)
        _check_whole("round", self.round, _LARGEST_INTEGER - 1)
        _check_seconds("deadline_seconds", self.deadline_seconds)
        _check_names("objects", self.objects, MOST_OBJECTS)
        _check_names("scalars", self.scalars, MOST_SCALARS)
        texts = [value for value in self.scalars.values() if isinstance(value, str)]
        if sum(len(text.encode()) for text in texts) > LARGEST_SCALARS:
            raise malformed(f"the texts of an instruction are longer than {LARGEST_SCALARS} bytes")
        for name, value in self.scalars.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise malformed(f"scalar {name} is not finite")
            if isinstance(value, int) and not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
                raise malformed(f"scalar {name} does not fit into 64 bits")


#: Scalars of an instruction: which start of the server it comes from, and the rounds done then. A
#: node that trained later rounds for another start goes back: they are repeated.
START, BEGUN = "start", "begun"
#: Names of the objects of a program: two sizes of it, from which the others follow.
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class ProgramRequest:
    """Which compiled program a node needs; hashable.

    Parameters
    ----------
    kind : ProgramKind
        A step, or a forward pass.
    examples : int
        Of a step: of the largest batch; more than the micro-batch stand for all that are more. Of a
        forward pass: that one call takes.
    counts : tuple of (str, int)
        Active granules of each mask group, by name.
    mutates : bool
        Whether it must leave room to mutate.
    reads : bool
        Whether gradients are read after a step.
    """

    kind: ProgramKind
    examples: int
    counts: tuple[tuple[str, int], ...] = ()
    mutates: bool = False
    reads: bool = False

    def __post_init__(self) -> None:
        _check_whole("examples", self.examples, _MOST_AT_ONCE, least=1)
        _check_names("counts", dict(self.counts), MOST_GROUPS)
        for name, count in self.counts:
            _check_whole(f"count of {name}", count, _LARGEST_INTEGER - 1)


@dataclass(frozen=True)
class Report:
    """How an instruction ended on a node.

    Parameters
    ----------
    instruction : str
        Its id.
    objects : mapping of str to ObjectRef
        What the node made, and uploaded before.
    metrics : mapping of str to float or sequence of float
        Finite numbers.
    failure : FailureKind or None
        One of :data:`REPORTABLE`; then there are no objects.
    reason : str
        One line for people, beside a failure.
    peak_bytes : int
        Peak memory of the process; 0 if not measured.
    seconds : float
        That the work took.
    """

    instruction: str
    objects: Refs = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    failure: FailureKind | None = None
    reason: str = ""
    peak_bytes: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_id(self.instruction)
        _check_names("objects", self.objects, MOST_OBJECTS)
        _check_names("metrics", self.metrics, MOST_METRICS)
        _check_whole("peak_bytes", self.peak_bytes, _LARGEST_INTEGER - 1)
        _check_seconds("seconds", self.seconds)
        numbers = [(name, _numbers(value)) for name, value in self.metrics.items()]
        if sum(len(found) for _, found in numbers) > MOST_NUMBERS:
            raise malformed(f"metrics have more than {MOST_NUMBERS} numbers")
        for name, found in numbers:
            if not all(map(math.isfinite, found)):
                raise malformed(f"metric {name} is not finite")
        if self.failure is not None and (self.objects or self.failure not in REPORTABLE):
            raise malformed("a failure has a kind that a node may report, and no objects")
        if len(self.reason) > LONGEST_REASON or not (self.reason + "x").isprintable():
            raise malformed(f"a reason is one line of at most {LONGEST_REASON} characters")


@dataclass(frozen=True)
class Outcome:
    """What came of an instruction, on the server; see :class:`Report`.

    Parameters
    ----------
    node_id : int
        The node.
    instruction : Instruction
        As it was submitted.
    failure : FailureKind or None
        Why there is no result, by the node's report or the server's own finding.
    objects : mapping of str to bytes
        What the node made; their digests were checked, and nothing else.
    elapsed : float
        Seconds from submission to the end, by the server's clock.
    """

    node_id: int
    instruction: Instruction
    elapsed: float
    failure: FailureKind | None = None
    reason: str = ""
    objects: Mapping[str, Bytes] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    peak_bytes: int = 0
    seconds: float = 0.0


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


def _check_names(key: str, values: Mapping[str, Any], most: int) -> None:
    if len(values) > most:
        raise malformed(f"there are more than {most} {key}")
    for name in values:
        check_name(f"a name in {key}", name)


def _check_whole(key: str, value: int, most: int, *, least: int = 0) -> None:
    if not least <= value <= most:
        raise malformed(f"{key} = {value} is not a whole number from {least} to {most}")


def _check_seconds(key: str, value: float) -> None:
    if not 0 <= value <= _LONGEST_WORK:
        raise malformed(f"{key} = {value!r} is not a number from 0 to {_LONGEST_WORK:g}")


def _numbers(value: Metric) -> Sequence[float]:
    return (value,) if isinstance(value, int | float) else value
