"""The bytes of a training step that is a program, part by part, read off the program.

Its arena is planned, its other buffers have names and sizes, and the native runtime says what a
program takes beside them. Nothing of the step's size is allocated to find out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.batches import even_parts, lanes_of, sizes_of_rest
from mest_fed.runtime.native import workspace_of
from mest_fed.runtime.program import Program
from mest_fed.runtime.sizes import second_size

#: What a step takes beside all other parts, in bytes, and for each buffer of each of its programs:
#: its description in Python, of which a process that has trained a smaller model has some already,
#: and what allocators keep. Fitted to 105 measurements of peaks (docs/figures.md).
BESIDE, DESCRIPTION = 100_000, 1_200


class Compiler(Protocol):
    """Gives the programs of steps, which training would run."""

    def __call__(
        self, model: nn.Module, shape: TrainingShape, *, reads: bool = False
    ) -> "PlannedStep | None":
        """Return the program of a group of examples; None where there is none.

        Parameters
        ----------
        model : nn.Module
            On the meta device.
        shape : TrainingShape
            How it trains.
        reads : bool
            Whether a mutation reads gradients of it.
        """


@dataclass(frozen=True)
class PlannedStep:
    """A training step as a program.

    Parameters
    ----------
    program : Program
        Of a group of examples.
    held : frozenset of str
        Buffers that are the model's own memory.
    copies : frozenset of str
        Buffers that hold what is made of a tensor of the model.
    """

    program: Program
    held: frozenset[str]
    copies: frozenset[str] = frozenset()


def program_bytes(
    step: PlannedStep, shape: TrainingShape, threads: int, *, rest: int | None = 0
) -> dict[str, int]:
    """Count what a program's step takes beside the model and its batch.

    Parameters
    ----------
    step : PlannedStep
        The step.
    shape : TrainingShape
        Its batch and micro-batch.
    threads : int
        To compute with.
    rest : int or None
        Examples of an epoch's last batch where it has fewer than the others, or one more; 0 where
        it has as many. None where nobody knows: then it may have any number.

    Returns
    -------
    dict
        Bytes by kind: gradients, optimizer, activations, workspace, batch (outputs alone) and
        runtime (descriptions, and what allocators keep).

    Raises
    ------
    InputError
        If the runtime refuses the program.
    """
    program = step.program
    arena, lanes = plan_arena(program), lanes_of(program, threads, shape.micro_batch)
    space = workspace_of(program, arena, threads=threads, lanes=lanes)
    sums = _bytes(program, "sum")
    others = set(_sizes(program, shape, rest)) - {program.examples}
    parts = _several(program, shape) or len(others) > 0
    models = step.held | step.copies
    own = (it for it in program.buffers if it.role == "state" and it.name not in models)
    copies = (it for it in program.buffers if it.name in step.copies)
    outputs = _bytes(program, "output") // program.examples * shape.batch
    return {
        # Where a batch is no sum of groups, those of its parts are added up in another copy.
        "gradients": sums if program.takes_groups or not parts else 2 * sums,
        "optimizer": sum(it.bytes for it in own),
        "activations": arena.peak * max(1, lanes),
        "workspace": space.plans * (1 + len(others))
        + (space.sums if parts else 0)
        + space.scratch * threads
        + sum(it.bytes for it in copies),
        "batch": outputs,
        "runtime": BESIDE
        + DESCRIPTION * len(program.buffers) * (1 + len(others | _second(program, others))),
    }


def _bytes(program: Program, role: str) -> int:
    return sum(program.buffers[it].bytes for it in program.of_role(role))


def _several(program: Program, shape: TrainingShape) -> bool:
    """Say whether a batch is more than one group, so that sums of groups are added up."""
    if program.takes_groups:
        return shape.batch > program.examples
    return shape.batch > shape.micro_batch


def _second(program: Program, others: set[int]) -> set[int]:
    """Return the size of which a program is made so that the others follow from two."""
    return {second_size(program.examples)} if others and program.examples > 1 else set()


def _sizes(program: Program, shape: TrainingShape, rest: int | None) -> Iterator[int]:
    """Yield the sizes of groups; each beside the program's own has plans, no larger than its."""
    group = program.examples
    if program.takes_groups:
        # A whole group less one is of all sizes.
        ends = [shape.batch, group - 1] if rest is None else [shape.batch, rest]
        for examples in ends:
            yield from sizes_of_rest(examples % group)
        return
    for examples in [shape.batch, shape.batch - 1 if rest is None else rest]:
        yield from even_parts(examples, shape.micro_batch)
