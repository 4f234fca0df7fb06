"""Layouts: buffers around convolutions become planes in place, so that none is packed.

The rule, for buffers of shape (N, C, H, W):

- A temporary buffer is planes if every operator that touches it allows that (``Kind.planes``), and
  it is connected with a convolution by operators whose arguments are planes.
- A buffer that a convolution touches, and another operator or the caller needs in C order, gets a
  twin that is planes: ``copy`` makes it before the first convolution, or, where the convolution
  writes, makes the C order from it. A view is C order, and so is an input.
- Connected buffers have one margin, the largest padding of their convolutions and at least 1, so
  that what is computed element by element runs over them as a whole, and may lie in its input.
- Connected buffers of which more are twins than not stay in C order: their copies would cost what
  packing costs.
- A convolution is on planes with both its arguments or with none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mest_fed.runtime.build import Builder
from mest_fed.runtime.kind import Kind
from mest_fed.runtime.passes.rewriting import rebuilt
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator


@dataclass(frozen=True)
class _Touch:
    """An operator's use of a buffer."""

    place: int
    argument: str
    allows: bool
    convolves: bool
    writes: bool


@dataclass
class _Choice:
    """What becomes of a buffer: planes itself, or beside a twin that is.

    ``users`` are the operators that use planes. ``copied`` is the place of the operator before
    which the twin is made, or behind which C order is made from it if ``back``.
    """

    number: int
    users: set[int]
    copied: int | None = None
    back: bool = False
    margin: int = field(default=0, compare=False)


def with_planes(program: Program) -> Program:
    """Choose which buffers are planes, and copy where layouts meet.

    Parameters
    ----------
    program : Program
        Of any phases; without margins.

    Returns
    -------
    Program
        Of the same inputs, outputs, parameters and states, whose operators compute the same.
    """
    choices = _margins(program, _choose(program))
    return _rewritten(program, choices)


def _choose(program: Program) -> list[_Choice]:
    """Choose for each buffer, without those convolutions of which an argument cannot be planes."""
    convolutions = {
        place
        for place, it in enumerate(program.operators)
        if _convolves(it.kind) and it.kind.on_planes(program.shapes(it))
    }
    while True:
        choices: list[_Choice] = []
        refused: set[int] = set()
        for number, touches in _touches(program, convolutions).items():
            choice = _choice(program, number, touches)
            if choice is not None:
                choices.append(choice)
            used = choice.users if choice else set()
            refused |= {it.place for it in touches if it.convolves and it.place not in used}
        if not refused:
            return choices
        convolutions -= refused


def _convolves(kind: Kind) -> bool:
    """Say whether an operator is a convolution: a window whose kernel is that of a weight."""
    return bool(kind.planes) and "stride" in kind.attributes and "kernel" not in kind.attributes


def _touches(program: Program, convolutions: set[int]) -> dict[int, list[_Touch]]:
    """Return the uses of each float buffer of four dimensions, in order."""
    found: dict[int, list[_Touch]] = {}
    for place, operator in enumerate(program.operators):
        kind = operator.kind
        for argument, number in operator.arguments.items():
            buffer = program.buffers[number]
            if len(buffer.shape) != 4 or buffer.dtype != "float32":
                continue
            taken = not _convolves(kind) or place in convolutions
            allows = taken and argument in kind.planes
            touch = _Touch(
                place, argument, allows, allows and _convolves(kind), number in operator.writes
            )
            found.setdefault(number, []).append(touch)
    return found


def _choice(program: Program, number: int, touches: list[_Touch]) -> _Choice | None:
    """Choose for one buffer; None: C order alone."""
    allowing = {it.place for it in touches if it.allows}
    refusing = {it.place for it in touches if not it.allows}
    if program.buffers[number].role == "temporary" and not refusing:
        return _Choice(number, allowing)
    convolutions = {it.place for it in touches if it.convolves}
    writers = {it.place for it in touches if it.writes}
    if not convolutions or refusing & allowing:
        return None
    last = max(writers, default=-1)
    if writers and writers <= allowing and all(it > last for it in refusing):
        return _Choice(number, allowing, last, back=True)
    if min(convolutions) > last:
        first = min(convolutions)
        return _Choice(number, {it for it in allowing if it >= first}, first)
    return None


def _margins(program: Program, choices: list[_Choice]) -> list[_Choice]:
    """Return the choices that are connected with a convolution, with their margins."""
    at: dict[int, list[int]] = {}
    for index, choice in enumerate(choices):
        for place in choice.users:
            at.setdefault(place, []).append(index)
    seen: set[int] = set()
    kept: list[_Choice] = []
    for start in range(len(choices)):
        if start in seen:
            continue
        seen.add(start)
        connected, places = [start], set[int]()
        for index in connected:
            for place in choices[index].users - places:
                places.add(place)
                connected += [it for it in at[place] if it not in seen]
                seen.update(at[place])
        edges = [max(it) for place in places for it in _paddings(program.operators[place])]
        twins = sum(choices[it].copied is not None for it in connected)
        if edges and 2 * twins <= len(connected):
            kept += [replace(choices[it], margin=max(1, *edges)) for it in connected]
    return kept


def _paddings(operator: Operator) -> Iterator[tuple[int, int]]:
    if _convolves(operator.kind):
        yield operator.attributes["padding"]


def _rewritten(program: Program, choices: list[_Choice]) -> Program:
    """Give buffers their margins, and twins to those that are needed in C order too."""
    builder = Builder(program)
    renamed: dict[int, dict[int, int]] = {}
    before: dict[int, list[Operator]] = {}
    behind: dict[int, list[Operator]] = {}
    for choice in choices:
        number, buffer = choice.number, program.buffers[choice.number]
        if choice.copied is None:
            builder.margin(number, choice.margin)
            continue
        twin = builder.buffer(f"{buffer.name}:planes", buffer.shape)
        builder.margin(twin, choice.margin)
        for place in choice.users:
            renamed.setdefault(place, {})[number] = twin
        both = ((twin,), (number,)) if choice.back else ((number,), (twin,))
        where = behind if choice.back else before
        where.setdefault(choice.copied, []).append(Operator("copy", *both))

    def replaced(place: int, operator: Operator) -> list[Operator]:
        laid = _with(operator, renamed.get(place, {}))
        return [*before.get(place, []), laid, *behind.get(place, [])]

    return rebuilt(program, builder, replaced)


def _with(operator: Operator, names: dict[int, int]) -> Operator:
    """Return an operator with other buffers."""
    inputs, outputs = (
        tuple(names.get(it, it) for it in side) for side in (operator.inputs, operator.outputs)
    )
    return replace(operator, inputs=inputs, outputs=outputs)
