"""Run a program with NumPy: right and slow, the definition that other runtimes are tested against.

The operators stand in the files ``reference_*.py``. Each is a function of its inputs that returns
its outputs; what it changes it returns behind them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mest_fed.errors import InputError
from mest_fed.runtime import (
    reference_elementwise,
    reference_losses,
    reference_norms,
    reference_planes,
    reference_products,
    reference_recurrent,
)
from mest_fed.runtime.arena import Arena
from mest_fed.runtime.bfloat16 import numpy_type, rounded, widened
from mest_fed.runtime.kind import Kind
from mest_fed.runtime.operators import OPERATORS, adding_to
from mest_fed.runtime.planes import elements
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Operator

Array = NDArray[Any]

#: Operator -> function of its inputs by name, its attributes and the shapes of its outputs.
IMPLEMENTATIONS: Mapping[str, Callable[..., Any]] = {
    **reference_products.OPERATORS,
    **reference_norms.OPERATORS,
    **reference_elementwise.OPERATORS,
    **reference_planes.OPERATORS,
    **reference_recurrent.OPERATORS,
    **reference_losses.OPERATORS,
}
#: Operator that adds to outputs -> the one that writes them.
_WRITING = {other[0]: name for name in OPERATORS if (other := adding_to(name)) is not None}


def compute(kind: Kind, arrays: Mapping[str, Array], **attributes: Any) -> dict[str, Array]:
    """Compute one operator.

    Parameters
    ----------
    kind : Kind
        Its line of the table.
    arrays : mapping of str to array
        Its inputs; and its outputs, whose shapes are read, and their values where it adds to them.
    **attributes
        All attributes.

    Returns
    -------
    dict of str to array
        Outputs, and inputs that it changes. Computed in the type of the inputs.
    """
    given = {it: arrays[it] for it in kind.inputs if it in arrays}
    shapes = {it: arrays[it].shape for it in kind.outputs if it in arrays}
    written = _WRITING.get(kind.name)
    added = {it: arrays[it] for it in kind.outputs if it in kind.changes}
    before = {} if written is None else {it: added.pop(it) for it in [*added]}
    function = IMPLEMENTATIONS[written or kind.name]
    found = function(**given, **added, shapes=shapes, **attributes)
    made: tuple[Array, ...] = found if isinstance(found, tuple) else (found,)
    made = (
        tuple(
            before[name] + it if name in before else it
            for name, it in zip(kind.outputs, made[: len(kind.outputs)], strict=False)
        )
        + made[len(kind.outputs) :]
    )
    names = [*kind.outputs, *(it for it in kind.changes if it in kind.inputs)]
    return {
        name: np.array(it)  # a view of an input could be overwritten by another output
        for name, it in zip(names, made, strict=True)
        if name in arrays and it is not None
    }


class Reference:
    """A program with memory: its buffers as arrays.

    Parameters
    ----------
    program : Program
        What is run.
    values : mapping of str to array
        Parameters and states by name. States may be left out, and are then zero. They are copied.
    precision : str, optional
        Type that float buffers are held and computed in; with ``float64`` the result is exact but
        for rounding. Buffers of bfloat16 are rounded whenever they are written.
    arena : Arena, optional
        Puts temporary buffers at its offsets of one array of bytes, so that a fault
        in it shows. Of the program's own types alone.

    Raises
    ------
    InputError
        If a value is missing, or has another shape.
    """

    def __init__(
        self,
        program: Program,
        values: Mapping[str, Array],
        precision: str | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.program = program
        self.arrays: list[Array] = []  # of bfloat16: bits
        self._wide = precision or "float32"
        memory = np.zeros(arena.peak if arena else 0, np.uint8)
        for number, buffer in enumerate(program.buffers):
            wide = precision is not None and buffer.dtype == "float32"
            dtype = np.dtype(precision if wide else numpy_type(buffer.dtype))
            if arena is not None and number in arena.offsets:
                start = arena.offsets[number]
                held = memory[start : start + buffer.bytes].view(dtype)
                self.arrays.append(elements(held, buffer.shape, buffer.margin))
            else:
                self.arrays.append(np.zeros(buffer.shape, dtype))
        for number in program.of_role("parameter", "state"):
            name, is_state = program.buffers[number].name, program.buffers[number].role == "state"
            if name in values:
                self.write(name, values[name])
            elif not is_state:
                raise InputError(f"no values for the parameter {name!r}")
        self._check_slots()

    def write(self, name: str, array: Any) -> None:
        """Copy an array into a buffer.

        Raises
        ------
        InputError
            If there is no such buffer, or its shape is another.
        """
        if name not in self.program.numbers:
            raise InputError(f"the program has no buffer {name!r}")
        number, array = self.program.numbers[name], np.asarray(array)
        held = self.arrays[number]
        if held.shape != array.shape:
            raise InputError(f"{name!r} has shape {array.shape}; allowed: {held.shape}")
        self._put(number, array)

    def read(self, name: str) -> Array:
        """Return a copy of a buffer: whatever its role, as it is after the last operator."""
        return self._values(self.program.numbers[name]).copy()

    def _values(self, number: int) -> Array:
        """Return the values of a buffer: it itself, but for bfloat16."""
        held = self.arrays[number]
        is_narrow = self.program.buffers[number].dtype == "bfloat16"
        return widened(held).astype(self._wide) if is_narrow else held

    def _put(self, number: int, values: Array) -> None:
        is_narrow = self.program.buffers[number].dtype == "bfloat16"
        self.arrays[number][...] = rounded(values) if is_narrow else values

    def step(self, inputs: Mapping[str, Any], groups: int = 1) -> None:
        """Run all operators.

        Parameters
        ----------
        inputs : mapping of str to array
            One for each buffer of the roles ``input``, of all groups, and ``setting``.
        groups : int
            Forward and backward run so many times. Outputs are those of the last group.

        Raises
        ------
        InputError
            If one is missing, or has another shape.
        """
        program = self.program
        for number in program.of_role("input", "setting"):
            name = program.buffers[number].name
            if name not in inputs:
                raise InputError(f"no values for the {program.buffers[number].role} {name!r}")
        for number in program.of_role("setting"):
            self.write(program.buffers[number].name, inputs[program.buffers[number].name])
        for number in program.of_role("sum"):
            self.arrays[number][...] = 0
        for group in range(groups):
            for number in program.of_role("input"):
                name = program.buffers[number].name
                rows = len(inputs[name]) // groups
                self.write(name, inputs[name][group * rows : (group + 1) * rows])
            self.run(program.operators[: program.per_group], group)
        self.run(program.operators[program.per_group :])

    def run(self, operators: Sequence[Operator], group: int = 0) -> None:
        """Run some operators over a group."""
        for operator in operators:
            buffers = operator.arguments
            arrays = {name: self._values(number) for name, number in buffers.items()}
            more = {"before": group} if operator.name == "dropout" else {}
            made = compute(operator.kind, arrays, **operator.attributes, **more)
            for name, result in made.items():
                self._put(buffers[name], result)

    def _check_slots(self) -> None:
        """Refuse slots that are not increasing with -1s behind, or are past their weight."""
        for operator in self.program.operators:
            if "slots" not in operator.arguments:
                continue
            name = self.program.buffers[operator.arguments["slots"]].name
            slots = self.read(name)
            most = self._slots_of(operator)
            active = slots[: np.max(np.flatnonzero(slots != -1), initial=-1) + 1]
            inside = len(active) == 0 or (active[0] >= 0 and active[-1] < most)
            if not inside or np.any(np.diff(active) <= 0):
                allowed = f"increasing, from 0 to {most - 1}, and only -1 behind them"
                raise InputError(f"{name!r} are no slots; allowed: {allowed}")

    def _slots_of(self, operator: Operator) -> int:
        """Return how many slots an operator's weight or planes have."""
        if "weight_shape" in operator.attributes:
            weight, rows = operator.attributes["weight_shape"], operator.attributes["rows"]
            return int(-(-weight[0] // rows) * math.prod(weight[1:]))
        of = operator.arguments
        return max(self.program.buffers[of[it]].shape[1] for it in ("x", "y"))
