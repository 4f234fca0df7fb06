"""Places for blocks of memory that live from one operator to another: greedy by size, best fit.

The largest block comes first, and each goes into the smallest gap between blocks that live at the
same time, or behind them (Pisarchyk and Lee 2020, "Efficient memory management for deep neural net
inference", section 5). Each block is compared with all that have a place, one by one where these
are few, and by NumPy where they are many.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Blocks up to which comparing one by one takes less time than arrays do.
FEW = 1_000


@dataclass(frozen=True)
class Block:
    """Bytes that live from one operator to another, both included.

    Parameters
    ----------
    size : int
        Bytes, a multiple of the alignment.
    start, end : int
        Places in the list of operators.
    buffers : tuple of int
        The buffers that lie in it, one after the other or as views.
    """

    size: int
    start: int
    end: int
    buffers: tuple[int, ...] = ()

    def meets(self, other: "Block") -> bool:
        """Say whether two blocks live at once."""
        return self.start <= other.end and other.start <= self.end


def pack(blocks: Sequence[Block]) -> list[int]:
    """Return the offset of each block, greedy by size with best fit."""
    taken = _Few() if len(blocks) <= FEW else _Many(len(blocks))
    offsets = [0] * len(blocks)
    for number in sorted(range(len(blocks)), key=lambda it: (-blocks[it].size, it)):
        block = blocks[number]
        offsets[number] = taken.best_gap(block)
        taken.add(block, offsets[number])
    return offsets


class _Few:
    """The blocks that have a place, by their offsets."""

    def __init__(self) -> None:
        self._placed: list[tuple[int, int, int, int]] = []

    def add(self, block: Block, offset: int) -> None:
        """Note the place of a block."""
        insort(self._placed, (offset, offset + block.size, block.start, block.end))

    def best_gap(self, block: Block) -> int:
        """Return where a block fits best."""
        size, first, last = block.size, block.start, block.end
        best, room, end = -1, 0, 0
        for start, stop, born, died in self._placed:
            if born > last or died < first:
                continue
            if start > end:
                gap = start - end
                if gap >= size and (best < 0 or gap < room):
                    best, room = end, gap
            if stop > end:
                end = stop
        return end if best < 0 else best


class _Many:
    """The same in arrays, whose numbers are compared all at once.

    Parameters
    ----------
    count : int
        How many blocks there will be.
    """

    def __init__(self, count: int) -> None:
        #: Offset, end of the bytes, first and last operator of each block that has a place.
        self._columns = np.empty((4, count), np.int64)
        self._count = 0

    def add(self, block: Block, offset: int) -> None:
        """Note the place of a block."""
        count = self._count
        place = np.searchsorted(self._columns[0, :count], offset)
        self._columns[:, place + 1 : count + 1] = self._columns[:, place:count]
        self._columns[:, place] = offset, offset + block.size, block.start, block.end
        self._count = count + 1

    def best_gap(self, block: Block) -> int:
        """Return where a block fits best."""
        starts, stops, born, died = self._columns[:, : self._count]
        meets = np.flatnonzero((born <= block.end) & (died >= block.start))
        ends = np.concatenate(([0], np.maximum.accumulate(stops[meets])))
        gaps = starts[meets] - ends[:-1]
        fit = np.flatnonzero(gaps >= block.size)
        return int(ends[fit[np.argmin(gaps[fit])]] if len(fit) else ends[-1])
