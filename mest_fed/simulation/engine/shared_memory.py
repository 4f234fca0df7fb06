"""Memory files through which a worker and the driver on one machine exchange data."""

import mmap
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

_TOKEN_BYTES = 32
#: Memory files grow by whole steps, since growing maps the file anew.
_STEP = 1 << 20
_ALIGNMENT = 64


class Span(NamedTuple):
    """Where data stands in a memory file."""

    start: int
    size: int


class Address(NamedTuple):
    """How a worker on the same machine finds a memory file, and knows it by its first bytes."""

    path: str
    token: bytes


class SharedMemory:
    """One end of a memory file: the worker writes, the driver reads at the addresses it gets.

    The reader must be done before the writer writes again.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)

    @classmethod
    def create(cls) -> tuple["SharedMemory", Address] | None:
        """Make a memory file, and say how to find it; None where there cannot be one."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            descriptor = os.memfd_create("mest-fed memory_file")
        except OSError:
            return None
        token = secrets.token_bytes(_TOKEN_BYTES)
        os.write(descriptor, token)
        return cls(descriptor), Address(f"/proc/{os.getpid()}/fd/{descriptor}", token)

    @classmethod
    def find(cls, address: Address) -> "SharedMemory | None":
        """Open the memory file at an address; None if it is not there, as on another machine."""
        try:
            descriptor = os.open(address.path, os.O_RDWR)
        except OSError:
            return None
        with suppress(OSError, ValueError):  # another file than ours has this name
            if os.pread(descriptor, _TOKEN_BYTES, 0) == address.token:
                return cls(descriptor)
        os.close(descriptor)
        return None

    def write(self, buffers: Sequence[memoryview]) -> list[Span] | None:
        """Write buffers of bytes; None if the memory file cannot hold so much."""
        spans = list(_layout(len(buffer) for buffer in buffers))
        end = spans[-1].start + spans[-1].size if spans else 0
        if end > len(self._map) and not self._grow(end):
            return None
        for span, buffer in zip(spans, buffers, strict=True):
            self._map[span.start : span.start + span.size] = buffer
        return spans

    def view(self, span: Span) -> memoryview:
        """Return what was written, to be copied before the writer writes again."""
        end = span.start + span.size
        if end > len(self._map):
            self._remap(os.fstat(self._descriptor).st_size)
        return memoryview(self._map)[span.start : end]

    def close(self) -> None:
        """Close this mapping."""
        self._map.close()
        os.close(self._descriptor)

    def _grow(self, size: int) -> bool:
        size = -(-size // _STEP) * _STEP
        try:
            # Pages are set aside now: to find none later would end the process.
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            return False
        self._remap(size)
        return True

    def _remap(self, size: int) -> None:
        self._map.close()
        self._map = mmap.mmap(self._descriptor, size)


def _layout(sizes: Iterable[int]) -> Iterable[Span]:
    start = _TOKEN_BYTES
    for size in sizes:
        start = -(-start // _ALIGNMENT) * _ALIGNMENT
        yield Span(start, size)
        start += size
