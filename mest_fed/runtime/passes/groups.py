"""Groups: a batch is taken a few examples at a time, so that what a step needs stays in the cache.

Each group goes through all layers, forward and back, before the next one begins. Gradients of
parameters and the loss are added up over the groups: by the operator that computes them, or by one
more as soon as a gradient is whole, so that the arena holds it for a moment only.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.operators import adding_to
from mest_fed.runtime.passes.rewriting import rebuilt
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

#: Bytes of the arena that a group may take: what a core's caches hold, the shared one included.
MOST_BYTES = 12 * 2**20


def with_groups(program: Program) -> Program:
    """Let a batch be several groups: what operators write to sums is added to them.

    Returns
    -------
    Program
        The same, where groups need statistics of the batch or of one another (batch norm).
    """
    program = _with_adding(program)
    direct = sorted(set(_directly_written(program)))
    builder = Builder(program)
    parts = {
        number: builder.buffer(
            f"{program.buffers[number].name}:group", program.buffers[number].shape
        )
        for number in direct
    }
    last = {
        number: place
        for place, operator in enumerate(program.operators[: program.per_group])
        for number in operator.writes
    }

    def added(place: int, operator: Operator) -> list[Operator]:
        if place >= program.per_group:
            return [operator]
        inputs, outputs = (
            tuple(parts.get(it, it) for it in side) for side in (operator.inputs, operator.outputs)
        )
        return [
            replace(operator, inputs=inputs, outputs=outputs),
            *(
                Operator("accumulate", (parts[number],), (number,))
                for number in direct
                if last[number] == place
            ),
        ]

    grouped = rebuilt(program, builder, added)
    return grouped if grouped.takes_groups else program


def _with_adding(program: Program) -> Program:
    """Let operators add to sums themselves, where they can: to all their sums and nothing else."""
    sums = set(program.of_role("sum"))

    def adding(operator: Operator) -> Operator:
        other = adding_to(operator.name)
        if other is None or not sums.issuperset(operator.arguments[it] for it in other[1]):
            return operator
        return replace(operator, name=other[0])

    operators = tuple(adding(it) for it in program.operators)
    return Program.unchecked(program.buffers, operators, program.phases)


def _directly_written(program: Program) -> Iterator[int]:
    """Yield sums that an operator of a group writes, and not only adds to."""
    for operator in program.operators[: program.per_group]:
        for number in operator.outputs:
            changed = {operator.arguments.get(it) for it in operator.kind.changes}
            of_sum = number >= 0 and program.buffers[number].role == "sum"
            if of_sum and number not in changed:
                yield number


def group_size(
    program_of: Callable[[int], Program], batch: int, most_bytes: int = MOST_BYTES
) -> int:
    """Choose how many examples a group has.

    Parameters
    ----------
    program_of : callable
        Gives the program of so many examples.
    batch : int
        Examples of a batch.
    most_bytes : int
        Of the arena of a group, without what is the same for groups of any size.

    Returns
    -------
    int
        The batch itself where what its arena holds of examples is small enough, or where it has to
        be one group. Else the largest power of two of which that is so, but one that takes at least
        as much as the sums, which are read and written once a group.
    """
    tried = min(2, batch)  # one example alone may have no batch statistics
    program = program_of(tried)
    if not program.takes_groups:
        return batch
    sums = sum(program.buffers[it].bytes for it in program.of_role("sum"))
    least = plan_arena(program).peak
    del program  # one at a time: the memory of Python's objects does not shrink again
    # what does not grow with the group, the gradient of a large weight, is no reason for small ones
    of_one = (plan_arena(program_of(2 * tried)).peak - least) / tried
    if batch * of_one <= most_bytes:
        return batch
    size = 1
    while 2 * size <= batch and (2 * size * of_one <= most_bytes or size * of_one < sums):
        size *= 2
    return size
