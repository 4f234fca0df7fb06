"""The native runtime: a program's operators in compiled code, over one arena. Needs NumPy alone."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime.arena import Arena
from mest_fed.runtime.bfloat16 import numpy_type, rounded, widened
from mest_fed.runtime.native_table import described, module
from mest_fed.runtime.planes import elements, size_of
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import ROWS

Array = NDArray[Any]

_ALIGNMENT = 64


class Shared(NamedTuple):
    """Memory that several runtimes share.

    Parameters
    ----------
    arrays : mapping of str to array
        What buffers of these names are bound to.
    arena : array, optional
        Taken where it is large enough.
    sums : Runtime, optional
        A runtime of the same step, with as many lanes or more: what it keeps for sums of groups
        that run at once is taken.
    """

    arrays: Mapping[str, Array]
    arena: NDArray[np.uint8] | None = None
    sums: "Runtime | None" = None


class Runtime:
    """A program with memory, ready to run.

    Parameters
    ----------
    program : Program
        What is run. All of it is checked again here.
    offsets : mapping of int to int
        Where in the arena buffers lie, in bytes, by number. The others have memory of their own.
    arena_bytes : int
        Size of the arena of a lane.
    threads : int
        Results have the same bits for any number.
    lanes : int
        Groups that run at once, with an arena each; 0 where a batch is one group.
    shared : Shared, optional
        Memory that is another runtime's too. The two must not run at once.

    Raises
    ------
    InputError
        If the program is not valid, or memory does not suffice: one line that says where.
    """

    def __init__(
        self,
        program: Program,
        offsets: Mapping[int, int],
        arena_bytes: int,
        *,
        threads: int = 1,
        lanes: int = 0,
        shared: Shared | None = None,
    ) -> None:
        shared = shared or Shared({})
        self._buffers = tuple(program.buffers)
        self._numbers = {buffer.name: number for number, buffer in enumerate(self._buffers)}
        self._offsets = dict(offsets)
        self.arena = _arena(arena_bytes, lanes, shared.arena)
        self._bound: dict[int, Array] = {}
        self._missing: set[int] = set()
        self._operators = tuple(program.operators)
        self._rows: dict[tuple[int, int], frozenset[int]] = {}
        place = self.arena.ctypes.data, arena_bytes
        self._program = _made(program, self._offsets, place, lanes, threads)
        if shared.sums is not None:
            _checked(self._program.share_sums, shared.sums._program)
        for number, buffer in enumerate(self._buffers):
            if number not in self._offsets:
                held = shared.arrays.get(buffer.name)
                self.bind(
                    number,
                    np.zeros(buffer.shape, numpy_type(buffer.dtype)) if held is None else held,
                )

    @property
    def workspace_bytes(self) -> int:
        """Bytes that plans and working memory take beside arena and bound buffers (measured)."""
        return int(self._program.workspace_bytes())

    def bind(self, number: int, array: Array) -> None:
        """Let a buffer that is not in the arena be an array's memory, without a copy.

        The array of an input or output may hold several groups, one behind the other.

        Raises
        ------
        InputError
            If the array has another shape or type, or may not be written, or is not contiguous.
        """
        buffer = self._buffers[number]
        fits = array.shape == buffer.shape
        if buffer.role in ROWS and buffer.shape and array.shape[1:] == buffer.shape[1:]:
            fits = len(array) > 0 and len(array) % buffer.shape[0] == 0
        if not fits or array.dtype != np.dtype(buffer.dtype):
            raise InputError(
                f"{buffer.name!r} has shape {array.shape} of {array.dtype}; "
                f"allowed: {buffer.shape} of {buffer.dtype}"
            )
        flags = array.flags
        if not (
            flags.c_contiguous and flags.aligned and (flags.writeable or buffer.role == "input")
        ):
            raise InputError(f"{buffer.name!r} must be contiguous, aligned and not read-only")
        _checked(self._program.bind, number, array.ctypes.data, array.nbytes)
        self._bound[number] = array
        self._missing.discard(number)

    def bind_name(self, name: str, array: Array) -> None:
        """Do the same for a buffer of a name."""
        self.bind(self._numbers[name], array)

    def unbind(self, names: Iterable[str]) -> None:
        """Drop the references to buffers' arrays; what reads them runs once others are bound."""
        for number in (self._numbers[name] for name in names):
            self._missing.add(number)
            self._bound.pop(number, None)

    def memory(self, name: str) -> Array:
        """Return a buffer itself, no copy of it: in the arena it holds what was last written there.

        Of planes it is a view of the elements alone; margins stay as they are. Of bfloat16 it is
        the bits, as uint16.

        Raises
        ------
        InputError
            If there is no such buffer, or it was unbound.
        """
        if name not in self._numbers:
            raise InputError(f"the program has no buffer {name!r}")
        number = self._numbers[name]
        self._check_bound({number})
        if number not in self._offsets:
            return self._bound[number]
        buffer = self._buffers[number]
        return elements(self._whole(number), buffer.shape, buffer.margin)

    def write(self, name: str, array: Any) -> None:
        """Copy an array into a buffer.

        Raises
        ------
        InputError
            If there is no such buffer, or its shape is another, or its numbers do not fit the type.
        """
        held, number = self.memory(name), self._numbers[name]
        dtype = self._buffers[number].dtype
        is_narrow = dtype == "bfloat16"
        array = fitting(name, array, "float32" if is_narrow else dtype)
        if held.shape != array.shape:
            raise InputError(f"{name!r} has shape {array.shape}; allowed: {held.shape}")
        if self._buffers[number].margin:
            self._whole(number)[...] = 0
        held[...] = rounded(array) if is_narrow else array

    def _whole(self, number: int) -> Array:
        """Return the values of a buffer in the arena, margins included."""
        buffer, start = self._buffers[number], self._offsets[number]
        dtype = np.dtype(numpy_type(buffer.dtype))
        size = size_of(buffer.shape, buffer.margin) * dtype.itemsize
        return self.arena[start : start + size].view(dtype)

    def read(self, name: str) -> Array:
        """Return a copy of a buffer, of bfloat16 as float32."""
        memory = self.memory(name)
        is_narrow = self._buffers[self._numbers[name]].dtype == "bfloat16"
        return widened(memory) if is_narrow else memory.copy()

    def run(self, first: int = 0, last: int | None = None) -> None:
        """Run the operators from ``first`` to before ``last``; nothing is allocated.

        Raises
        ------
        InputError
            If slots, targets or indices are out of range, or a buffer was unbound.
        """
        last = len(self._operators) if last is None else last
        if self._missing:
            self._check_bound(self._rows_of(first, last))
        _checked(self._program.run, first, last)

    def groups(self, count: int, before: int = 0) -> None:
        """Run forward and backward over so many groups of the arrays that are bound.

        Parameters
        ----------
        count : int
            Groups.
        before : int
            Examples of the batch that other runtimes had before, to whose sums these are added;
            0: sums start from zero.

        Raises
        ------
        InputError
            If slots, targets or indices are out of range, or a buffer was unbound.
        """
        self._check_bound(self._missing)
        _checked(self._program.groups, count, before)

    def _rows_of(self, first: int, last: int) -> frozenset[int]:
        """Return the buffers of rows that some operators read or write."""
        if (first, last) not in self._rows:
            touched = {
                number
                for it in self._operators[first:last]
                for number in (*it.reads, *it.writes)
                if self._buffers[number].role in ROWS
            }
            self._rows[first, last] = frozenset(touched)
        return self._rows[first, last]

    def _check_bound(self, numbers: Collection[int]) -> None:
        if missing := self._missing.intersection(numbers):
            names = ", ".join(sorted(self._buffers[it].name for it in missing))
            raise InputError(f"{names}: unbound; allowed: once an array is bound")


class Workspace(NamedTuple):
    """What a program takes beside its buffers, in bytes.

    Parameters
    ----------
    plans : int
        Plans of operators, and working memory that they use in turn.
    sums : int
        Of groups that run at once, of all lanes.
    scratch : int
        Of each thread; programs use the same.
    """

    plans: int
    sums: int
    scratch: int


def workspace_of(program: Program, arena: Arena, *, threads: int = 1, lanes: int = 0) -> Workspace:
    """Return what a program would take beside its buffers; they need no memory for it.

    Scratch memory of the calling thread is given back, and taken anew where it is needed.

    Parameters
    ----------
    program, arena, threads, lanes
        As for :class:`Runtime`.

    Raises
    ------
    InputError
        As for :class:`Runtime`.
    """
    module().release_thread_scratch()
    nowhere = _ALIGNMENT  # an address that nothing reads, since the program is never run
    made = _made(program, arena.offsets, (nowhere, arena.peak), lanes, threads)
    sums = 0
    if lanes > 0:
        floats = (math.prod(program.buffers[it].shape) for it in program.of_role("sum"))
        lines = sum(-(-count * 4 // _ALIGNMENT) for count in floats)
        sums = max(1, lanes) * lines * _ALIGNMENT
    return Workspace(made.workspace_bytes() - sums, sums, module().thread_scratch_bytes())


def _made(
    program: Program,
    offsets: Mapping[int, int],
    arena: tuple[int, int],
    lanes: int,
    threads: int,
) -> Any:
    """Return a program of the compiled module, its arena at an address and of a size."""
    arguments = *described(program, offsets), *arena, lanes, threads
    return _checked(module().Program, *arguments)


def fitting(name: str, array: Any, dtype: str) -> Array:
    """Return an array in a type that holds its numbers, contiguous; itself if it is so.

    Raises
    ------
    InputError
        If its numbers do not fit.
    """
    given = np.asarray(array)
    if given.dtype == dtype and given.flags.c_contiguous:
        return given
    fits = np.can_cast(given.dtype, dtype, "same_kind")
    made = np.ascontiguousarray(given, dtype).reshape(given.shape) if fits else given
    whole = np.issubdtype(np.dtype(dtype), np.integer) and made is not given
    if not fits or (whole and np.any(made != given)):
        raise InputError(f"{name!r} is given {given.dtype}; allowed: what {dtype} holds")
    return made


def _arena(size: int, lanes: int, held: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return memory for arenas of so many bytes, one for each lane."""
    size *= max(1, lanes)
    if not 0 <= size <= 2**40:
        raise InputError(f"an arena of {size} bytes; allowed: 0 to {2**40}")
    if held is not None and len(held) >= size:
        return held
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    skipped = -memory.ctypes.data % _ALIGNMENT
    return memory[skipped : skipped + size]


def _checked(call: Any, *arguments: Any) -> Any:
    """Call the compiled module; what it refuses is an input error."""
    try:
        return call(*arguments)
    except ValueError as error:
        raise InputError(f"the runtime refuses the program: {error}") from None
    except TypeError:  # the binding's own, of several lines
        raise InputError(
            "the program holds a number that is not allowed; allowed: numbers of 64 bits"
        ) from None
