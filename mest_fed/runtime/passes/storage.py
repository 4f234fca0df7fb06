"""Storage: what is kept from forward to backward, and gradients between norms and convolutions.

Planes of bfloat16 take half the memory and half the traffic of float32, and products of pairs of
them twice the multiply-adds of an instruction, where the processor has one. A buffer becomes
bfloat16 if it is planes, and every operator that touches it takes it so (``Kind.bf16``): outputs of
convolutions and of norms behind them, and the gradients that norms give to convolutions.
Parameters, statistics, sums and all other gradients stay float32, and every operator sums in
float32: these are the roundings of mixed-precision training (Kalamkar et al. 2019, "A study of
BFLOAT16 for deep learning training"), without those of the updates. Products of pairs round the
weights that they multiply, too.
"""

from mest_fed.runtime.build import Builder
from mest_fed.runtime.program import Program


def with_bf16_storage(program: Program) -> Program:
    """Let planes be bfloat16 where all operators that touch them take that.

    Parameters
    ----------
    program : Program
        Behind the passes that choose layouts and make buffers of planes.

    Returns
    -------
    Program
        Of the same operators.
    """
    builder = Builder(program)
    for number in _narrow(program):
        builder.dtype(number, "bfloat16")
    return builder.unchecked()


def obstacles(program: Program) -> list[str]:
    """Return the forward operators for which activations stay float32 that others would narrow.

    They take no bfloat16, or work in C order.
    """
    planes = _planes(program)
    wanted = {
        operator.arguments[name]
        for operator in program.operators
        for name in operator.kind.bf16
        if name in operator.arguments
    }
    return sorted(
        {
            operator.name
            for operator in program.operators[: program.phases[0]]
            for name, number in operator.arguments.items()
            if not operator.kind.converts
            and number in wanted
            and (number in planes) != (name in operator.kind.bf16)
        }
    )


def _planes(program: Program) -> set[int]:
    return {
        number
        for number, it in enumerate(program.buffers)
        if it.margin and it.role == "temporary" and it.dtype == "float32"
    }


def _narrow(program: Program) -> set[int]:
    """Return the largest set of buffers in which each operator has all it may have, or none."""
    found = _planes(program)
    for operator in program.operators:
        for name, number in operator.arguments.items():
            if name not in operator.kind.bf16:
                found.discard(number)
    while True:
        refused: set[int] = set()
        for operator in program.operators:
            given = operator.arguments
            alike = {given[it] for it in operator.kind.bf16 if it in given}
            if not operator.kind.converts and not alike <= found:
                refused |= alike & found
        if not refused:
            return found
        found -= refused
