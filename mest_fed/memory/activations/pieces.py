"""Cutting a batch into pieces that stay in a processor's cache."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Bytes of a piece of one activation; some eight of them stand in memory at once.
PIECE_BYTES = 2**18

_ends_only = False


def pieces(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Yield [first, last) over the images of a float32 activation of some shape.

    The cuts depend on the shape alone, so that sums over pieces have the same bits every time.
    """
    count, each = shape[0], max(1, 4 * shape[1:].numel())
    size = max(1, PIECE_BYTES // each)
    cuts = [(first, min(count, first + size)) for first in range(0, count, size)]
    yield from [cuts[0], cuts[-1]] if _ends_only and len(cuts) > 2 else cuts


@contextmanager
def only_the_ends() -> Iterator[None]:
    """Visit the first and the last pieces alone, where only memory is looked at, not results."""
    global _ends_only
    _ends_only = True
    try:
        yield
    finally:
        _ends_only = False
