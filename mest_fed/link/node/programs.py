"""The compiled programs of a node: asked for when they are needed, resized here."""

import zlib
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
    """A program of any size, of two that came.

    Parameters
    ----------
    texts : mapping of str to bytes
        The two as JSON, compressed.
    """

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts
        self.first = self._parsed(FIRST)

    def _parsed(self, part: str) -> Program:
        return parse_program(zlib.decompress(self._texts[part]), _SOURCE)

    @cached_property
    def _second(self) -> Program | None:
        """The other size. Batches of one size alone never need it, and as text it is small."""
        return self._parsed(SECOND) if SECOND in self._texts else None

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

    The one that was asked for last is there, as a plan counts it; of others the texts are kept, a
    tenth as large.

    Parameters
    ----------
    source : callable
        Gives programs that are not here.
    threads : int
        To compute with; results have the same bits for any number.
    """

    def __init__(self, source: Source, threads: int = 1) -> None:
        self._source, self._threads = source, threads
        self._texts: OrderedDict[ProgramRequest, Mapping[str, bytes]] = OrderedDict()
        self._last: tuple[ProgramRequest, Sizes] | None = None

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
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        self._last = None  # before another one is made
        if wanted not in self._texts:
            while len(self._texts) >= _MOST:
                self._texts.popitem(last=False)
            parts = self._source(wanted)
            self._texts[wanted] = {name: zlib.compress(parts[name], 1) for name in parts}
        self._texts.move_to_end(wanted)
        found = Sizes(self._texts[wanted])
        self._last = wanted, found
        return found
