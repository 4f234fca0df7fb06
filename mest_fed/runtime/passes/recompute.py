"""Less memory: what a norm gives is computed again where the backward pass needs it.

The output of a norm lies between two convolutions: the next one reads it at once, and again much
later for the gradient of its weight. The norm's input, mean and scale are kept for the norm's own
gradient, so the output need not be: one walk makes it again (Chen et al. 2016, "Training deep nets
with sublinear memory cost", where it is whole layers). A norm with a residual keeps its output:
that residual would have to be kept instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mest_fed.runtime.build import Builder
from mest_fed.runtime.passes.rewriting import rebuilt
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator


@dataclass(frozen=True)
class _Again:
    """A norm whose output is computed again before an operator, for it and those after it."""

    place: int
    before: int
    output: int


def with_recomputed_norms(program: Program) -> Program:
    """Compute outputs of norms again in the backward phase, so that they are not kept for it.

    Returns
    -------
    Program
        Of the same meaning, with up to one more walk for each norm without a residual.
    """
    found = list(_found(program))
    builder = Builder(program)
    made: dict[int, list[Operator]] = {}
    twins: dict[int, tuple[int, int]] = {}
    for again in found:
        operator, buffer = program.operators[again.place], program.buffers[again.output]
        twin = builder.buffer(f"{buffer.name}:again", buffer.shape)
        twins[again.output] = again.before, twin
        given = operator.arguments
        kind = f"{operator.name}_apply"
        names = ("x", "mean", "scale", "gamma", "beta")
        kept = {
            it: operator.attributes[it] for it in ("groups", "relu") if it in operator.attributes
        }
        inputs = (*(given[it] for it in names), -1)
        made.setdefault(again.before, []).append(Operator(kind, inputs, (twin,), kept))

    def replaced(place: int, operator: Operator) -> list[Operator]:
        new = {number: twin for number, (before, twin) in twins.items() if place >= before}
        inputs = tuple(new.get(it, it) for it in operator.inputs)
        return [*made.get(place, []), replace(operator, inputs=inputs)]

    return rebuilt(program, builder, replaced)


def _found(program: Program) -> Iterator[_Again]:
    """Yield the norms whose outputs wait for the backward phase while their inputs do too."""
    forward = program.phases[0]
    readers: dict[int, list[int]] = {}
    changed: set[int] = set()
    for place, operator in enumerate(program.operators):
        for number in operator.reads:
            readers.setdefault(number, []).append(place)
        changed |= {
            operator.arguments[it] for it in operator.kind.changes if it in operator.arguments
        }
    for place, operator in enumerate(program.operators[:forward]):
        if operator.name not in ("group_norm", "batch_norm") or "residual" in operator.arguments:
            continue
        output = operator.arguments["y"]
        later = [it for it in readers.get(output, []) if it >= forward]
        is_kept = program.buffers[output].role != "temporary" or output in changed
        if is_kept or not later:
            continue
        if max(readers[operator.arguments["x"]]) >= max(later):
            yield _Again(place, min(later), output)
