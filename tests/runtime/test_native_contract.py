"""The native runtime against the table of operators, and against the reference, operator by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import compute as run_native
from native_cases import near
from operator_cases import CASES, Draw, gradients_of, shapes_of

from mest_fed.runtime.native_table import kinds
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.reference import compute

#: Of the largest number and 1: rounding of float32 in sums of some hundred products.
BOUND = 2e-5


def test_the_native_table_is_that_of_programs():
    native = {
        name: (
            [[tuple(it) for it in side] for side in (kind.inputs, kind.outputs)],
            {it.name: (it.real, it.length) for it in kind.attributes},
        )
        for name, kind in kinds().items()
    }
    contract = {
        name: (
            [
                [
                    (
                        it,
                        kind.dtype(it),
                        it in kind.optional,
                        it in kind.planes,
                        it in kind.bf16,
                        it in kind.bf16 and kind.converts,
                    )
                    for it in side
                ]
                for side in (kind.inputs, kind.outputs)
            ],
            {it: (what.kind is float, what.length or 1) for it, what in kind.attributes.items()},
        )
        for name, kind in OPERATORS.items()
    }
    assert native == contract


def single(array):
    """Round an array to float32, unless it holds whole numbers."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def check(kind, arrays, attributes, blank):
    """Run an operator in both, apart and over each input that the table allows; return outputs."""
    attributes = {name: attributes[name] for name in kind.attributes}
    arrays = {name: single(array) for name, array in arrays.items()}
    shapes = shapes_of(kind, {**arrays, **blank}, attributes)
    made = {it: np.zeros(shape) for it, shape in shapes.items() if it not in arrays}
    wide = {
        it: array.astype(np.float64) if array.dtype == np.float32 else array
        for it, array in {**made, **arrays}.items()
    }
    exact = compute(kind, wide, **attributes)
    inputs = {
        it: torch.tensor(array.astype(kind.dtype(it)))
        for it, array in arrays.items()
        if it in kind.inputs
    }
    outputs = {it: torch.tensor(arrays[it]) if it in kind.changes else shapes[it] for it in shapes}
    shared = [{out: it} for out, it in kind.shares if out in outputs and it in inputs]
    for over in [{}, *shared]:
        found = run_native(kind.name, inputs, outputs, over, **attributes)
        for name, array in exact.items():
            near(found[name], torch.from_numpy(array), BOUND)
    return exact


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_an_operator_and_its_gradients(name, seed):
    draw = Draw(seed)
    case = CASES[name](draw)
    arrays = {**case.inputs}
    sizes = {f"d{it}": np.zeros(array.shape) for it, array in case.inputs.items()}
    blank = {it: np.zeros(shape) for it, shape in case.shapes.items()}
    arrays |= check(OPERATORS[name], arrays, case.attributes, blank)
    arrays |= {f"d{it}": draw.normal(*arrays[it].shape) for it in "yabc" if it in arrays}
    arrays = {**arrays, **case.inputs}
    for gradient in gradients_of(name):
        kind = OPERATORS[gradient]
        given_ = {it: arrays[it] for it in kind.inputs if it in arrays}
        if not case.attributes.get("relu", True):
            del given_["y"]
        optional = {"dresidual", "db"} - {f"d{it}" for it in case.inputs}
        blank = {it: sizes[it] for it in kind.outputs if it in sizes and it not in optional}
        given_ |= {it: draw.normal(*sizes[it].shape) for it in kind.outputs if it in kind.changes}
        if gradient != "bias_gradient" or "b" in case.inputs:
            check(kind, given_, case.attributes, blank)
