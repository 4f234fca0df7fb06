"""Fewer walks: a sum of gradients is taken where a part is computed, or where a norm reads it.

Where a block's input has two readers, its gradient comes in two parts, and ``accumulate`` adds one
to the other: two reads and a write. A convolution's gradient can add its part itself. Else, if only
a norm's gradient reads the sum, it can read both parts instead (its argument ``more``).
"""

from dataclasses import replace

from mest_fed.runtime.build import Builder
from mest_fed.runtime.operators import adding_to
from mest_fed.runtime.passes.rewriting import Uses, rebuilt, replaced
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

_NORMS = ("group_norm_gradient", "batch_norm_gradient")


def with_fused_sums(program: Program) -> Program:
    """Let gradients of convolutions add to what comes from elsewhere, or those of norms take both.

    Returns
    -------
    Program
        Of the same meaning, without such an ``accumulate``.
    """
    program = _with_adding(program)
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

    def summed(place: int, operator: Operator) -> list[Operator]:
        if place in dropped:
            return []
        return [_with_more(operator, more[place]) if place in more else operator]

    return rebuilt(program, Builder(program), summed)


def _with_adding(program: Program) -> Program:
    """Let operators add to a temporary buffer what only an ``accumulate`` behind them takes."""
    uses = Uses(program)
    changes: dict[int, Operator | None] = {}
    for place, operator in enumerate(program.operators):
        if operator.name != "accumulate":
            continue
        (part,), (total,) = operator.inputs, operator.outputs
        temporary = program.buffers[part].role == program.buffers[total].role == "temporary"
        if not (temporary and uses.read_by(part, [place])):
            continue
        (writer,) = uses.writers[part]
        before = program.operators[writer]
        other = adding_to(before.name)
        begun = any(it < writer for it in uses.writers[total])
        between = program.operators[writer:place]
        rests = not any(total in (*it.reads, *it.writes) for it in between)
        if other is not None and begun and rests and before.arguments.get(other[1][0]) == part:
            outputs = tuple(total if it == part else it for it in before.outputs)
            changes |= {writer: replace(before, name=other[0], outputs=outputs), place: None}
    return replaced(program, changes)


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
