"""Where each buffer of a program lies in memory, found before the step runs.

Buffers that no two operators need at once share memory: ``packing.py`` says how.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from mest_fed.runtime.packing import Block, pack
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

#: Bytes that every offset is a multiple of: a line of the cache, and of AVX-512.
ALIGNMENT = 64
#: Roles of the buffers that the arena holds; the others have addresses of their own.
HELD = ("temporary",)


@dataclass(frozen=True)
class Arena:
    """A place for each temporary buffer of a program.

    Parameters
    ----------
    blocks : tuple of Block
        What is placed.
    places : tuple of int
        Offset of each block, in bytes.
    """

    blocks: tuple[Block, ...]
    places: tuple[int, ...]

    @cached_property
    def offsets(self) -> dict[int, int]:
        """Offset of each buffer that the arena holds."""
        both = zip(self.blocks, self.places, strict=True)
        return {number: place for block, place in both for number in block.buffers}

    @cached_property
    def peak(self) -> int:
        """Bytes of the arena."""
        both = zip(self.blocks, self.places, strict=True)
        return max((place + block.size for block, place in both), default=0)

    @cached_property
    def lower_bound(self) -> int:
        """Bytes that live at once at the worst operator: no placement takes less."""
        return lower_bound(self.blocks)


def plan_arena(program: Program) -> Arena:
    """Place the temporary buffers of a program."""
    blocks = tuple(blocks_of(program))
    return Arena(blocks, tuple(pack(blocks)))


def lower_bound(blocks: Sequence[Block]) -> int:
    """Return the most bytes that live at one operator."""
    changes: dict[int, int] = {}
    for block in blocks:
        changes[block.start] = changes.get(block.start, 0) + block.size
        changes[block.end + 1] = changes.get(block.end + 1, 0) - block.size
    live = most = 0
    for place in sorted(changes):
        live += changes[place]
        most = max(most, live)
    return most


def blocks_of(program: Program) -> Iterator[Block]:
    """Yield the blocks of a program: buffers that lie in one another's memory are one.

    A view lies where its source does, if neither is changed after it is written. An output lies
    where an input does that is not read any more, if the table allows it.
    """
    lives = _Lives(program)
    for place, operator in enumerate(program.operators):
        lives.join_view(operator)
        lives.join_in_place(place, operator)
    for root, members in lives.groups().items():
        size = max(program.buffers[it].bytes for it in members)
        start, end = lives.span(root)
        yield Block(-(-size // ALIGNMENT) * ALIGNMENT, start, end, tuple(members))


class _Lives:
    """From when to when buffers live, and which of them are one block."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._parent: dict[int, int] = {}
        for place, operator in enumerate(program.operators):
            for number in (*operator.reads, *operator.writes):
                if program.buffers[number].role in HELD:
                    self.first.setdefault(number, place)
                    self.last[number] = place
                    self._parent.setdefault(number, number)
            for number in operator.writes:
                self._written[number] = self._written.get(number, 0) + 1

    def span(self, number: int) -> tuple[int, int]:
        """Return the first and the last operator of a buffer's block."""
        root = self._root(number)
        return self.first[root], self.last[root]

    def groups(self) -> dict[int, list[int]]:
        """Return the buffers of each block by its root."""
        found: dict[int, list[int]] = {}
        for number in self._parent:
            found.setdefault(self._root(number), []).append(number)
        return found

    def join_view(self, operator: Operator) -> None:
        """Let a view lie in its source, if neither is changed."""
        if operator.kind.is_view:
            source, view = operator.inputs[0], operator.outputs[0]
            held = source in self._parent and view in self._parent
            if held and self._written[source] == self._written[view] == 1:
                self._join(source, view)

    def join_in_place(self, place: int, operator: Operator) -> None:
        """Let outputs lie in inputs that end here."""
        buffers = operator.arguments
        free = {source for _, source in operator.kind.shares}
        for output, source in operator.kind.shares:
            made, given = buffers.get(output, -1), buffers.get(source, -1)
            if made not in self._parent or given not in self._parent:
                continue
            elsewhere = any(
                number != -1 and self._root(number) == self._root(given)
                for name, number in buffers.items()
                if name not in free and number in self._parent
            )
            begins = self._root(made) == made and self.first[made] == place
            ends = self.span(given)[1] == place
            if begins and ends and not elsewhere and self._fits(made, given):
                self._join(given, made)

    def _fits(self, made: int, given: int) -> bool:
        """Say whether elements lie at the same places of two buffers, the second large enough."""
        output, source = self.program.buffers[made], self.program.buffers[given]
        alike = (output.margin, output.dtype) == (source.margin, source.dtype)
        return alike and output.bytes <= source.bytes

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, source: int, other: int) -> None:
        root, joined = self._root(source), self._root(other)
        if root == joined:
            return
        self._parent[joined] = root
        self.first[root] = min(self.first[root], self.first[joined])
        self.last[root] = max(self.last[root], self.last[joined])
