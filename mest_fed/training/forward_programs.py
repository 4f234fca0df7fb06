"""A model's forward pass as a program: evaluation, and training by forward passes alone."""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mest_fed.devices import StepWork, program_step_work
from mest_fed.nn.capture import Captured, capture
from mest_fed.runtime import native_table
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.sizes import Sizes
from mest_fed.runtime.step import CompiledForward
from mest_fed.training.places import Copies, Place, places_of
from mest_fed.training.tracing import check_plain, refusing_changes

#: Examples that an evaluation computes together.
EVALUATION_GROUP = 8


class ModelForward:
    """A compiled evaluation in the memory of a model.

    Parameters
    ----------
    first : Captured
        Of a group of examples.
    places : list of Place
        Where the model has what the program reads.
    threads : int
        To compute with.
    sizes : Sizes
        The programs of so many examples.
    """

    def __init__(self, first: Captured, places: list[Place], threads: int, sizes: Sizes) -> None:
        self.places = places
        self._program = first.program
        #: Examples that go through the model together.
        self.group = first.program.examples
        self._forward = CompiledForward(first.program, threads, sizes)
        #: Bytes beside the model's.
        self.bytes = self._forward.arena_bytes

    @cached_property
    def work(self) -> StepWork:
        """What a pass over a batch takes."""
        return program_step_work(self._program)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of examples, valid until the next call."""
        for place in self.places:
            self._forward.bind(place.buffer, place.array(Copies()))
        return torch.from_numpy(self._forward.predict(inputs.numpy()))


def forward_sizes(
    model: nn.Module, example: tuple[tuple[int, ...], torch.dtype], group: int
) -> tuple[Captured, Sizes]:
    """Return the evaluation of a group of examples as a program, and those of other sizes.

    Raises
    ------
    InputError
        If a step of the model has no operator: one line.
    """
    shape, dtype = example

    def captured(examples: int) -> Captured:
        name = str(dtype).removeprefix("torch.")
        found = capture(model, (examples, *shape), name, training=False)
        return replace(found, program=with_planes(found.program).checked())

    first = captured(group)
    return first, Sizes(lambda it: captured(it).program, first.program)


def check_forward(model: nn.Module, inputs: tuple[tuple[int, ...], torch.dtype]) -> None:
    """Check that a model has a compiled evaluation; it is in evaluation mode afterwards.

    Parameters
    ----------
    model, inputs
        As of :func:`step_program`.

    Raises
    ------
    InputError
        If it has none: one line that says why.
    """
    native_table.module()
    model.eval()
    check_plain(model, training=False)
    (examples, *shape), dtype = inputs
    with refusing_changes(model):
        first, _ = forward_sizes(model, (tuple(shape), dtype), examples)
        places_of(model, first)
