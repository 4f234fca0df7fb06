"""Batches of any size through a program that is written for a group. Needs NumPy alone.

A batch is taken group by group; what is left over goes through the same step, written for a smaller
group. All sizes share parameters, states, settings and sums.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.native import Runtime, Shared, fitting
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import ROWS
from mest_fed.system.allocator import release_pages

Array = NDArray[Any]
#: Gives the program of so many examples.
Resize = Callable[[int], Program]

#: Groups of a batch that are bound at a time, however many threads there are: that decides in which
#: order their sums are added. Inputs that are made in turn are made for so many.
GROUPS_AT_ONCE = 4

#: Sizes beside a program's own that are kept.
_MOST_SIZES = 32


def even_parts(examples: int, most: int) -> Iterator[int]:
    """Yield the sizes of the parts of a batch: at most so many examples, and none much smaller.

    A lone example at the end would have no statistics of a batch.
    """
    left = examples
    while left:
        size = -(-left // -(-left // most))
        yield size
        left -= size


def lanes_of(program: Program, threads: int, batch: int | None = None) -> int:
    """Return how many groups run at once, each in a lane; 0 where a batch is one group.

    Parameters
    ----------
    program : Program
        Of a group.
    threads : int
        To compute with.
    batch : int, optional
        Examples of the largest batch that is expected; by default as many groups as threads.
    """
    if not program.takes_groups:
        return 0
    groups = threads if batch is None else max(1, batch // program.examples)
    return min(threads, groups, GROUPS_AT_ONCE)


def sizes_of_rest(examples: int) -> Iterator[int]:
    """Yield the sizes of the groups that take so many examples, less than a whole group.

    They are powers of two, so that few sizes are ever made.
    """
    while examples:
        size = 1 << examples.bit_length() - 1
        yield size
        examples -= size


class LazyRows(Protocol):
    """Rows of a batch that take memory for the groups alone that are computed."""

    shape: tuple[int, ...]

    def make(self, part: slice) -> Array:
        """Return some of them."""


class Batches:
    """A program with memory, which takes batches.

    Parameters
    ----------
    program : Program
        Of a group of examples.
    threads : int
        Results have the same bits for any number.
    resize : callable, optional
        Gives the program of another size, with the same parameters and states. Without it a batch
        is groups of the program's own size.
    batch : int, optional
        Examples of the largest batch that is expected: no more groups than it has run at once, and
        take memory. By default as many as threads.
    arrays : mapping of str to array, optional
        Memory of parameters, states, settings and sums by name, which is another's too; new memory,
        all zeros, for the others.

    Raises
    ------
    InputError
        If the runtime refuses the program, or its memory is not there.
    """

    def __init__(
        self,
        program: Program,
        threads: int = 1,
        resize: Resize | None = None,
        batch: int | None = None,
        arrays: Mapping[str, Array] | None = None,
    ) -> None:
        self.program, self.threads = program, threads
        self._examples = program.examples
        self._lanes = lanes_of(program, threads, batch)
        self.rows = {program.buffers[it].name: program.buffers[it] for it in program.of_role(*ROWS)}
        #: Parameters, states, settings and sums by name.
        self.arrays: dict[str, Array] = _held(program, arrays or {})
        #: Examples that have statistics of their own, at most, where they are of the batch (batch
        #: norm): their gradients are added up. None for all of a batch.
        self.micro_batch: int | None = None
        #: Outputs of the last batch by name.
        self.outputs: dict[str, Array] = {}
        self._resize = resize
        self._arena: NDArray[np.uint8] | None = None
        self.runtime = self._runtime(program)
        self._others: dict[int, Runtime] = {}
        #: Size -> what its runtime is to be bound to again before it runs.
        self._unbound: dict[int, set[str]] = {}

    def bind(self, name: str, array: Array) -> None:
        """Let a parameter or state be an array's memory, for all sizes.

        Raises
        ------
        InputError
            As :meth:`~mest_fed.runtime.native.Runtime.bind`.
        """
        self.runtime.bind_name(name, array)
        self.arrays[name] = array
        for names in self._unbound.values():
            names.add(name)

    def release_memory(self) -> None:
        """Give the memory of arena and sums back to the system until the next batch."""
        for array in (self.runtime.arena, *self._sums):
            release_pages(array)

    def unbind_inputs(self) -> None:
        """Drop the references to the batch: the next one is made in the memory that it took."""
        names = [name for name, it in self.rows.items() if it.role == "input"]
        for runtime in (self.runtime, *self._others.values()):
            runtime.unbind(names)

    def groups(self, inputs: Mapping[str, Any]) -> None:
        """Run forward and backward over a batch: sums and outputs are those of the batch then.

        Parameters
        ----------
        inputs : mapping of str to array or LazyRows
            All inputs, (examples, ...).

        Raises
        ------
        InputError
            If a shape or type is another, or slots, targets or indices are out of range.
        """
        arrays: dict[str, Array | LazyRows] = {
            name: it if hasattr(it, "make") else self._fitting(name, it)
            for name, it in inputs.items()
        }
        examples = self._check(arrays)
        for name, buffer in self.rows.items():
            if buffer.role == "output":
                held = self.outputs.get(name)
                if held is None or len(held) != examples:
                    shape = (examples, *buffer.shape[1:])
                    self.outputs[name] = np.empty(shape, buffer.dtype)
        arrays.update(self.outputs)
        before, added, parts = 0, self.program.takes_groups, list(self._parts(examples))
        sums = [] if added or len(parts) == 1 else self._sums
        totals = [np.zeros_like(it) for it in sums]
        for runtime, size, count in parts:
            for groups in _in_turn(count):
                some = slice(before, before + size * groups)
                for name, it in arrays.items():
                    runtime.bind_name(name, self._some(name, it, some))
                runtime.groups(groups, before if added else 0)
                before += size * groups
            for total, part in zip(totals, sums, strict=True):
                total += part
        for total, part in zip(totals, sums, strict=True):
            part[...] = total

    @property
    def _sums(self) -> list[Array]:
        return [self.arrays[self.program.buffers[it].name] for it in self.program.of_role("sum")]

    def update(self) -> None:
        """Run the operators behind the groups: the update."""
        self.runtime.run(self.program.per_group)

    def _some(self, name: str, rows: Array | LazyRows, part: slice) -> Array:
        if isinstance(rows, np.ndarray):
            return rows[part]
        return self._fitting(name, rows.make(part))

    def _fitting(self, name: str, rows: Any) -> Array:
        return fitting(name, rows, self.rows[name].dtype)

    def _check(self, arrays: Mapping[str, Array | LazyRows]) -> int:
        """Return how many examples a batch has."""
        examples = {it.shape[0] if it.shape else 0 for it in arrays.values()}
        count = max(examples)
        for name, array in arrays.items():
            shape = (count, *self.rows[name].shape[1:])
            if tuple(array.shape) != shape or count == 0:
                allowed = f"{('N', *shape[1:])}".replace("'", "")
                raise InputError(
                    f"{name!r} has shape {array.shape}; allowed: {allowed}, one N of at least 1 "
                    f"for all inputs"
                )
        return count

    def _parts(self, examples: int) -> Iterator[tuple[Runtime, int, int]]:
        """Yield what runs a batch, one after the other: a runtime, its examples, its groups."""
        if not self.program.takes_groups:
            for size in even_parts(examples, self.micro_batch or examples):
                yield self._sized(size), size, 1
            return
        size = self._examples
        whole, left = divmod(examples, size)
        if whole:
            yield self.runtime, size, whole
        if self._resize is None and left:
            self._sized(left)  # refuses
        for size in sizes_of_rest(left):
            yield self._sized(size), size, 1

    def _sized(self, examples: int) -> Runtime:
        """Return the runtime of a group of so many examples."""
        if examples == self._examples:
            return self.runtime
        if self._resize is None:
            many = "a multiple of " if self.program.takes_groups else ""
            raise InputError(
                f"{examples} examples are no group of the program's; "
                f"allowed: batches of {many}{self._examples}"
            )
        if examples not in self._others:
            if len(self._others) >= _MOST_SIZES:
                oldest = next(iter(self._others))
                del self._others[oldest], self._unbound[oldest]
            self._others[examples] = self._runtime(self._resize(examples))
            self._unbound[examples] = set()
        runtime, names = self._others[examples], self._unbound[examples]
        while names:
            name = names.pop()
            runtime.bind_name(name, self.arrays[name])
        return runtime

    def _runtime(self, program: Program) -> Runtime:
        arena = plan_arena(program)
        same = program is self.program
        lanes = self._lanes if same else int(program.takes_groups)
        held = {it.name for it in program.buffers if it.role in _SHARED}
        if held != set(self.arrays):
            raise InputError("the program of another size has other parameters or states")
        try:
            made = Runtime(
                program,
                arena.offsets,
                arena.peak,
                threads=self.threads,
                lanes=lanes,
                shared=Shared(
                    self.arrays, self._arena, None if same or not lanes else self.runtime
                ),
            )
        except MemoryError:
            raise InputError(f"no memory for the program's arena of {arena.peak:,} bytes") from None
        self._arena = made.arena
        return made


def _in_turn(groups: int) -> Iterator[int]:
    """Yield so many groups in turn, a few at a time."""
    for first in range(0, groups, GROUPS_AT_ONCE):
        yield min(GROUPS_AT_ONCE, groups - first)


_SHARED = ("parameter", "state", "setting", "sum")


def _held(program: Program, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return the memory that all sizes share, by name: what is given, or zeros."""
    shared = [it for it in program.buffers if it.role in _SHARED]
    try:
        return {
            it.name: given[it.name] if it.name in given else np.zeros(it.shape, it.dtype)
            for it in shared
        }
    except MemoryError:
        total = sum(it.bytes for it in shared if it.name not in given)
        raise InputError(f"no memory for the program's parameters of {total:,} bytes") from None
