"""Cutting a batch into micro-chunks that stay in a processor's cache."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Bytes of a chunk of one activation; some eight of them stand in memory at once.
CHUNK_BYTES = 2**18

_ends_only = False


def micro_chunks(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Yield [first, last) over the images of a float32 activation of some shape.

    The cuts depend on the shape alone, so that sums over micro-chunks have the same bits every
    time.
    """
    count, each = shape[0], max(1, 4 * shape[1:].numel())
    size = max(1, CHUNK_BYTES // each)
    cuts = [(first, min(count, first + size)) for first in range(0, count, size)]
    yield from [cuts[0], cuts[-1]] if _ends_only and len(cuts) > 2 else cuts


@contextmanager
def only_the_ends() -> Iterator[None]:
    """Visit the first and the last micro-chunks alone, where memory is looked at, not results."""
    global _ends_only
    _ends_only = True
    try:
        yield
    finally:
        _ends_only = False


class Workspace:
    """Flat buffers by name; each grows to the largest that was asked for, and stays."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(
        self, name: str, shape: torch.Size, like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return an uninitialised tensor that is valid until the name is taken again.

        Parameters
        ----------
        name : str
            Of the buffer.
        shape : torch.Size
            What is wanted.
        like : Tensor
            Gives device and type.
        dtype : torch.dtype, optional
            Another type.
        """
        key = (name, dtype or like.dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < shape.numel() or buffer.device != like.device:
            self._buffers.pop(key, None)  # before the larger one exists
            buffer = torch.empty(shape.numel(), dtype=key[1], device=like.device)
            self._buffers[key] = buffer
        return buffer[: shape.numel()].view(shape)
