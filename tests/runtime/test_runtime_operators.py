"""Every operator of the table against torch in float64, its shapes, and its refusals."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import CASES, Draw, gradients_of, shapes_of

from mest_fed.errors import InputError
from mest_fed.runtime.build import Builder
from mest_fed.runtime.operators import OPERATORS
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference, compute

#: Rounding of float64 in sums of up to some hundred products of numbers of size 1.
BOUND = 1e-12
SEEDS = st.integers(0, 2**32 - 1)


def check(kind, arrays, attributes, expected, shapes=None):
    """Compute an operator, and compare each output that torch has, in shape too."""
    attributes = {name: attributes[name] for name in kind.attributes}
    blank = {it: np.zeros(shape) for it, shape in (shapes or {}).items() if it in kind.outputs}
    made_shapes = shapes_of(kind, {**arrays, **blank}, attributes)
    outputs = {it: np.zeros(shape) for it, shape in made_shapes.items() if it not in arrays}
    outputs |= {it: arrays[it] for it in kind.outputs if it in arrays}
    before = {it: array.copy() for it, array in arrays.items()}
    made = compute(kind, {**arrays, **outputs}, **attributes)
    for it, array in before.items():
        np.testing.assert_array_equal(arrays[it], array, err_msg=f"{kind.name} changed {it}")
    for it, array in made.items():
        wanted = expected[it].detach().numpy()
        assert array.shape == wanted.shape, (kind.name, it)
        np.testing.assert_allclose(
            array, wanted, rtol=BOUND, atol=BOUND, err_msg=f"{kind.name} {it}"
        )
    assert made.keys() <= expected.keys()
    return made


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_an_operator_and_its_gradients(name, seed):
    draw = Draw(seed)
    case, kind = CASES[name](draw), OPERATORS[name]
    tensors = {it: torch.tensor(array) for it, array in case.inputs.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    results = case.function(**tensors)
    made = check(kind, case.inputs, case.attributes, results, case.shapes)
    gradients = gradients_of(name)
    if not gradients:
        return
    outputs = [it for it in results if it in ("y", "a", "b", "c", "loss") and it in kind.outputs]
    seeds = [
        torch.ones(()) if it == "loss" else torch.tensor(draw.normal(*results[it].shape))
        for it in outputs
    ]
    trained = [it for it, tensor in tensors.items() if tensor.requires_grad]
    found = torch.autograd.grad(
        [results[it] for it in outputs], [tensors[it] for it in trained], seeds, allow_unused=True
    )
    expected = {f"d{it}": grad for it, grad in zip(trained, found, strict=True) if grad is not None}
    given_ = {f"d{it}": seed.double().numpy() for it, seed in zip(outputs, seeds, strict=True)}
    arrays = {**case.inputs, **made, **given_}
    sizes = {f"d{it}": case.inputs[it].shape for it in trained}
    for gradient in gradients:
        its = OPERATORS[gradient]
        inputs = {it: arrays[it] for it in its.inputs if it in arrays}
        if not case.attributes.get("relu", True):
            del inputs["y"]
        if gradient == "bias_gradient" and "b" not in case.inputs:
            continue
        check(its, inputs, case.attributes, expected, sizes)


def test_every_operator_has_a_case():
    tested = {*CASES, *(gradient for name in CASES for gradient in gradients_of(name))}
    assert tested == set(OPERATORS)


def built(name, seed):
    """Build a program of one operator, whose outputs are new buffers."""
    case, kind = CASES[name](Draw(seed)), OPERATORS[name]
    builder, inputs = Builder(), {}
    for it, array in case.inputs.items():
        if it in kind.outputs:  # accumulate: what it adds to is written before
            continue
        role = "state" if it in kind.changes else "input"
        inputs[it] = builder.buffer(it, array.shape, kind.dtype(it), role)
    outputs = dict(case.shapes)
    if name == "accumulate":
        first = builder.buffer("first", case.inputs["into"].shape)
        builder.operator("reshape", {"x": inputs["a"]}, {"y": first})
        outputs = {"into": first}
    builder.operator(name, inputs, outputs, **case.attributes)
    return builder.end_phase(0).program()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS)
def test_wrong_shapes_are_one_line(name, seed):
    program = built(name, seed)
    assert parse_program(program.to_json()).sha256 == program.sha256
    for argument, number in program.operators[-1].arguments.items():
        if (name, argument) == ("sum_of_squares", "x"):  # of any shape
            continue
        table = program.as_table()
        table["buffers"][number]["shape"] = [9, 7, 11, 13, 5]
        with pytest.raises(InputError) as caught:
            parse_program(json.dumps(table))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("program: operators[")


def test_slots_must_increase_within_their_weight():
    builder = Builder()
    inputs = {
        "x": builder.buffer("x", (2, 3), role="input"),
        "values": builder.buffer("values", (2, 4), role="parameter"),
        "slots": builder.buffer("slots", (2,), "int32", "state"),
    }
    builder.operator("sparse_linear", inputs, {}, "y", weight_shape=(5, 3), rows=4)
    program = builder.end_phase(0).program()
    values = np.zeros((2, 4))
    for slots in ([0, 5], [5, -1], [-1, -1]):
        Reference(program, {"values": values, "slots": slots})
    for slots in ([0, 6], [3, 3], [4, 1], [-1, 2], [2, -2]):
        with pytest.raises(InputError, match="'slots' are no slots"):
            Reference(program, {"values": values, "slots": slots})
