"""Bounds of an edge link's server: what it grants nodes, and what they can make it hold."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from mest_fed.errors import not_allowed
from mest_fed.link.protocol import LARGEST_CHUNK, LEAST_CHUNK, Refusal

_MIB = 1 << 20
#: A node that is silent for so many times ``heartbeat_seconds`` is not there.
SILENT_HEARTBEATS = 3


@dataclass(frozen=True)
class Limits:
    """What a server grants, and how much it holds at most.

    Parameters
    ----------
    nodes : int
        Nodes that are registered.
    queue : int
        Instructions of one node that have not ended.
    chunk_bytes : int
        Bytes of data in one message.
    upload_bytes, node_bytes, total_bytes : int
        Bytes that a node may upload for one instruction, that it may have in flight (results that
        nobody has polled included), and that all nodes may.
    program_bytes : int
        Bytes of compiled programs that are kept.
    heartbeat_seconds, wait_seconds : float
        How often a node is heard at least; how long an answer to Wait is held back.
    gone_seconds : float
        Silence after which a node is forgotten, and its instructions end as failures.
    stall_seconds : float
        How long a transfer may stand still.
    handshake_seconds : float
        How long a connection may take to become one.
    calls_per_second, programs_per_second : float
        Rate of a node's calls, and of its requests for programs.
    call_burst, program_burst : int
        How many of them may come at once.
    streams : int
        Transfers and requests for programs of one node at the same time.
    """

    nodes: int = 10_000
    queue: int = 4
    chunk_bytes: int = 64 << 10
    upload_bytes: int = 256 * _MIB
    node_bytes: int = 512 * _MIB
    total_bytes: int = 2048 * _MIB
    program_bytes: int = 256 * _MIB
    heartbeat_seconds: float = 30.0
    wait_seconds: float = 25.0
    gone_seconds: float = 600.0
    stall_seconds: float = 30.0
    handshake_seconds: float = 10.0
    calls_per_second: float = 20.0
    programs_per_second: float = 0.5
    call_burst: int = 100
    program_burst: int = 16
    streams: int = 4

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise not_allowed(each.name, getattr(self, each.name), "a number above 0")
        if not LEAST_CHUNK <= self.chunk_bytes <= LARGEST_CHUNK:
            allowed = f"a whole number from {LEAST_CHUNK} to {LARGEST_CHUNK}"
            raise not_allowed("chunk_bytes", self.chunk_bytes, allowed)
        longest = SILENT_HEARTBEATS * self.heartbeat_seconds
        if self.wait_seconds >= longest:
            raise not_allowed("wait_seconds", self.wait_seconds, f"a number below {longest:g}")
        if self.gone_seconds < longest:
            raise not_allowed("gone_seconds", self.gone_seconds, f"a number from {longest:g}")


class Allowance:
    """A rate with a burst: a token bucket.

    Parameters
    ----------
    rate : float
        A second.
    burst : int
        At once.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = float(burst), clock()

    def spend(self, what: str) -> None:
        """Spend one.

        Raises
        ------
        Refusal
            If none is left; ``what`` says of what.
        """
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            raise Refusal("RESOURCE_EXHAUSTED", f"too many {what}")
        self._left -= 1
