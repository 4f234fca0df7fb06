"""What a compiled step takes: its operators, one by one. Modelled.

An operator takes as long as its multiply-adds or its bytes, whichever is longer (the roofline model
of Williams et al. 2009), and what its call and its planes take a core, however small they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mest_fed.devices.cost import REFERENCE, StepWork, WeightSeconds, Work
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

#: Roles of buffers of four dimensions that are planes.
_PLANES = ("input", "temporary", "output")


@dataclass(frozen=True)
class ProgramSeconds(WeightSeconds):
    """Seconds of one core of the reference machine that a program's size leaves as they are.

    Parameters
    ----------
    single, strip
        As of :class:`WeightSeconds`.
    operator : float
        Of a call of an operator.
    plane : float
        Of each plane (a channel of an example) that an operator goes through.
    step : float
        Of a step beside its operators.
    """

    operator: float = 1e-7
    plane: float = 7.7e-8
    step: float = 1.9e-4


PROGRAM_SECONDS = ProgramSeconds()


def program_step_work(program: Program, seconds: ProgramSeconds = PROGRAM_SECONDS) -> StepWork:
    """Return what a program's step takes, by examples, groups and steps.

    A group of fewer examples than the program's takes a smaller program, and its share of the work.

    Parameters
    ----------
    program : Program
        Of a training step.
    seconds : ProgramSeconds
        Other constants than those of the reference machine, to fit them.
    """
    count = program.per_group
    group, update = program.operators[:count], program.operators[count:]
    once = _calls(program, update, seconds) + Work(core_seconds=seconds.step)
    return StepWork(
        example=_work(program, group, seconds) * (1 / program.examples),
        group=_calls(program, group, seconds),
        step=_work(program, update, seconds) + once,
    )


def _work(program: Program, operators: Sequence[Operator], seconds: ProgramSeconds) -> Work:
    """Add up what grows with the values that operators compute."""
    total = Work()
    for operator in operators:
        if not operator.kind.is_view:
            planes = Work(core_seconds=seconds.plane * _planes(program, operator))
            total += _roof(program, operator) + planes
    return total


def _calls(program: Program, operators: Sequence[Operator], seconds: ProgramSeconds) -> Work:
    """Add up what a group costs, however few examples it has."""
    calls, places = 0.0, 0.0
    for operator in operators:
        if not operator.kind.is_view:
            calls += seconds.operator
            places += _places(program, operator, seconds)
    return Work(core_seconds=calls, gather_seconds=places)


def _roof(program: Program, operator: Operator) -> Work:
    """Return an operator's operations or its bytes, whichever take the reference machine longer."""
    flops, moved = 2.0 * program.work(operator), float(program.traffic(operator))
    sparse = "slots" in operator.arguments
    kind = "dense" if not sparse else "unstructured" if _rows(operator) == 1 else "block"
    if flops / REFERENCE.flops[kind] < moved / REFERENCE.memory_rate:
        return Work(moved_bytes=moved)
    return Work(sparse_flops=flops) if sparse else Work(dense_flops=flops)


def _planes(program: Program, operator: Operator) -> int:
    """Return how many planes an operator goes through: those of its largest argument."""
    arguments = (program.buffers[it] for it in operator.arguments.values())
    shapes = [it.shape for it in arguments if len(it.shape) == 4 and it.role in _PLANES]
    return max((shape[0] * shape[1] for shape in shapes), default=0)


def _places(program: Program, operator: Operator, seconds: WeightSeconds) -> float:
    """Return what the places of a sparse linear layer's weights cost."""
    if "slots" not in operator.arguments or len(operator.attributes.get("weight_shape", ())) != 2:
        return 0.0
    values = operator.arguments.get("values", operator.arguments.get("dvalues"))
    assert values is not None
    return seconds.of_weight(_rows(operator)) * prod(program.buffers[values].shape)


def _rows(operator: Operator) -> int:
    """Return the output channels of a granule."""
    rows = operator.attributes.get("rows", 1)
    assert isinstance(rows, int)
    return rows
