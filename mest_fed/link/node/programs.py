"""The compiled programs of a node: asked for when they are needed, resized here."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from mest_fed.errors import InputError
from mest_fed.link.messages import FIRST, SECOND, ProgramRequest
from mest_fed.runtime.program import Program
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.sizes import resized
from mest_fed.runtime.step import CompiledForward, CompiledStep
from mest_fed.units import number_of

_SOURCE = "a program of the server"
#: Programs of a node that are kept: those of steps and of evaluations that take turns.
_MOST = 4


#: Gives the parts of a program: two sizes as JSON.
Source = Callable[[ProgramRequest], Mapping[str, bytes | bytearray]]


class Sizes:
    """A program of any size, of two that came."""

    def __init__(self, parts: Mapping[str, bytes | bytearray]) -> None:
        self.first = parse_program(bytes(parts[FIRST]), _SOURCE)
        self._text = parts.get(SECOND)

    @cached_property
    def _second(self) -> Program | None:
        """The other size. Batches of one size alone never need it, and as text it is small."""
        return None if self._text is None else parse_program(bytes(self._text), _SOURCE)

    def __call__(self, examples: int) -> Program:
        """Return the program of so many examples.

        Raises
        ------
        InputError
            If it does not follow from those that came.
        """
        if examples == self.first.examples:
            return self.first
        second = self._second
        if second is not None and examples == second.examples:
            return second
        found = None if second is None else resized(self.first, second, examples)
        if found is None:
            raise InputError(
                f"the program of {number_of(examples, 'example')} does not follow from two others"
            )
        return found


class NodePrograms:
    """The steps and forward passes of a node.

    Parameters
    ----------
    source : callable
        Gives programs that are not here.
    threads : int
        To compute with; results have the same bits for any number.
    """

    def __init__(self, source: Source, threads: int = 1) -> None:
        self._source, self._threads = source, threads
        self._sizes: OrderedDict[ProgramRequest, Sizes] = OrderedDict()

    def step(
        self, wanted: ProgramRequest, micro_batch: int, rng: np.random.Generator
    ) -> CompiledStep:
        """Return a step with memory of its own."""
        sizes = self._find(wanted)
        return CompiledStep(
            sizes.first, self._threads, rng, sizes, micro_batch=micro_batch, batch=micro_batch
        )

    def forward(self, wanted: ProgramRequest) -> CompiledForward:
        """Return a forward pass with memory of its own."""
        sizes = self._find(wanted)
        return CompiledForward(sizes.first, self._threads, sizes)

    def _find(self, wanted: ProgramRequest) -> Sizes:
        if wanted not in self._sizes:
            while len(self._sizes) >= _MOST:
                self._sizes.popitem(last=False)
            self._sizes[wanted] = Sizes(self._source(wanted))
        self._sizes.move_to_end(wanted)
        return self._sizes[wanted]
