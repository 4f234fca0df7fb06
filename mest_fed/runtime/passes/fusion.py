"""Fewer walks: a sum of gradients is taken where the norm's gradient reads it.

Where a block's input has two readers, its gradient comes in two parts, and ``accumulate`` adds one
to the other: two reads and a write. If only a norm's gradient reads the sum, it can read both parts
instead (its argument ``more``).
"""

from dataclasses import replace

from mest_fed.runtime.build import Builder
from mest_fed.runtime.passes.rebuilt import rebuilt
from mest_fed.runtime.program import Operator, Program

_NORMS = ("group_norm_gradient", "batch_norm_gradient")


def with_fused_sums(program: Program) -> Program:
    """Let gradients of norms add the two parts of what comes from above.

    Returns
    -------
    Program
        Of the same meaning, without the ``accumulate`` before each of them.
    """
    uses: dict[int, list[int]] = {}
    for place, operator in enumerate(program.operators):
        for number in {*operator.reads, *operator.writes}:
            uses.setdefault(number, []).append(place)
    more: dict[int, int] = {}
    dropped: set[int] = set()
    for place in range(len(program.operators) - 1, -1, -1):
        operator = program.operators[place]
        if operator.name != "accumulate":
            continue
        (part,), (total,) = operator.inputs, operator.outputs
        later = [it for it in uses[total] if it > place]
        if program.buffers[total].role != "temporary" or len(later) != 1:
            continue
        reader = later[0]
        if reader not in more and _takes(program, reader, total) and _rests(program, place, reader):
            more[reader] = part
            dropped.add(place)

    def replaced(place: int, operator: Operator) -> list[Operator]:
        if place in dropped:
            return []
        return [_with_more(operator, more[place]) if place in more else operator]

    return rebuilt(program, Builder(program), replaced)


def _takes(program: Program, place: int, total: int) -> bool:
    """Say whether an operator is a norm's gradient that has a sum as dy alone, and no more yet."""
    operator = program.operators[place]
    if operator.name not in _NORMS:
        return False
    as_dy = operator.arguments["dy"] == total and operator.inputs.count(total) == 1
    return as_dy and "more" not in operator.arguments


def _rests(program: Program, place: int, reader: int) -> bool:
    """Say whether the part that an ``accumulate`` adds is the same until a reader."""
    (part,) = program.operators[place].inputs
    between = program.operators[place + 1 : reader]
    return not any(part in operator.writes for operator in between)


def _with_more(operator: Operator, part: int) -> Operator:
    inputs = list(operator.inputs)
    inputs[operator.kind.inputs.index("more")] = part
    return replace(operator, inputs=tuple(inputs))
