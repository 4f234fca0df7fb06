"""What the edge link says, as plain objects; both sides use them.

An object that was made has passed its checks, wherever its values came from.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mest_fed.link.protocol import (
    LARGEST_CHUNK,
    LARGEST_INTEGER,
    LARGEST_SCALARS,
    LEAST_CHUNK,
    LONGEST_REASON,
    LONGEST_TOML,
    MOST_AT_ONCE,
    MOST_CAPABILITIES,
    MOST_EXAMPLES,
    MOST_GROUPS,
    MOST_METRICS,
    MOST_NUMBERS,
    MOST_OBJECTS,
    MOST_SCALARS,
    check_digest,
    check_id,
    check_name,
    check_names,
    check_seconds,
    check_whole,
    malformed,
)
from mest_fed.schema import FailureKind

Scalar = bool | int | float | str
Metric = float | Sequence[float]
Bytes = bytes | bytearray | memoryview


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
        check_whole("size of an object", self.size, LARGEST_INTEGER - 1)

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
    saving : bool
        Whether its battery runs short, so that it asks for a plan of less work.
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
    saving: bool = False

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
            check_whole(key, getattr(self, key), LARGEST_INTEGER - 1)
        check_whole("examples", self.examples, MOST_EXAMPLES)
        check_whole("partition", self.partition or 0, MOST_EXAMPLES)


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
    name: str = ""
    notice: str = ""

    def __post_init__(self) -> None:
        check_whole("node_id", self.node_id, LARGEST_INTEGER - 1)
        check_whole("chunk_bytes", self.chunk_bytes, LARGEST_CHUNK, least=LEAST_CHUNK)
        for key in ("heartbeat_seconds", "wait_seconds"):
            check_seconds(key, getattr(self, key))


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
        check_whole("round", self.round, LARGEST_INTEGER - 1)
        check_seconds("deadline_seconds", self.deadline_seconds)
        check_names("objects", self.objects, MOST_OBJECTS)
        check_names("scalars", self.scalars, MOST_SCALARS)
        texts = [value for value in self.scalars.values() if isinstance(value, str)]
        if sum(len(text.encode()) for text in texts) > LARGEST_SCALARS:
            raise malformed(f"the texts of an instruction are longer than {LARGEST_SCALARS} bytes")
        for name, value in self.scalars.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise malformed(f"scalar {name} is not finite")
            if isinstance(value, int) and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
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
        check_whole("examples", self.examples, MOST_AT_ONCE, least=1)
        check_names("counts", dict(self.counts), MOST_GROUPS)
        for name, count in self.counts:
            check_whole(f"count of {name}", count, LARGEST_INTEGER - 1)


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
        check_names("objects", self.objects, MOST_OBJECTS)
        check_names("metrics", self.metrics, MOST_METRICS)
        check_whole("peak_bytes", self.peak_bytes, LARGEST_INTEGER - 1)
        check_seconds("seconds", self.seconds)
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


def _numbers(value: Metric) -> Sequence[float]:
    return (value,) if isinstance(value, int | float) else value
