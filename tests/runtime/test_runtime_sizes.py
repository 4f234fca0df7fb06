"""Programs of other sizes that follow from two: the same as those that are made."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mest_fed.runtime.build import Builder
from mest_fed.runtime.sizes import Sizes, resized
from mest_fed.training import CLASSIFICATION, OptimizerSettings
from mest_fed.training.step_program import PASSES, StepPrograms

sys.path.append(str(Path(__file__).parent))
from step_cases import STEPS, dtype_of, model_of


def programs_of(name, **how):
    shape, *rest = STEPS[name]
    model = model_of(name, shape, *rest).train()
    example = tuple(shape), dtype_of(shape)
    return StepPrograms(model, example, CLASSIFICATION, OptimizerSettings(), **how)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("name", ["resnet8", "mlp", "transformer"])
def test_a_derived_program_is_the_one_that_is_made(name, groups):
    programs = programs_of(name, groups=groups, passes=tuple(PASSES))
    made = []
    sizes = Sizes(lambda it: made.append(it) or programs(it), programs(6))
    for examples in (6, 1, 5, 2, 8):
        assert sizes(examples) == programs(examples), examples
    assert made == [2]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 9))
def test_a_program_does_not_depend_on_what_was_asked_before(before, examples):
    def make(size):
        """Of two sizes it is one operator, of others another: they cannot be derived."""
        builder = Builder()
        x = builder.buffer("x", (size, 4), role="input")
        (y,) = builder.operator("relu" if size in {2, 5} else "tanh", {"x": x}, {}, "y")
        builder.role(y, "output")
        return builder.end_phase(0).program()

    used = Sizes(make, make(5))
    for size in before:
        used(size)
    assert used(examples) == Sizes(make, make(5))(examples)


def program(shape=(4, 3), factor=1.0, role="input"):
    builder = Builder()
    x = builder.buffer("x", shape, role=role)
    (y,) = builder.operator("scale", {"x": x}, {}, "y", factor=factor, offset=0.0)
    builder.role(y, "output")
    return builder.end_phase(0).program()


def test_dimensions_that_differ_count_examples():
    found = resized(program((4, 3)), program((2, 3)), 7)
    assert [it.shape for it in found.buffers] == [(7, 3), (7, 3)]
    assert [it.shape for it in resized(program((4, 3, 8)), program((2, 3, 4)), 3).buffers] == [
        (3, 3, 6)
    ] * 2


@pytest.mark.parametrize(
    "other",
    [
        program((2, 3), factor=0.5),
        program((2, 3, 1)),
        program((2, 5)),
        program((2, 3), role="parameter"),
        replace(program((2, 3)), phases=(0, 1, 0)),
    ],
    ids=["attribute", "dimensions", "no multiple", "role", "phases"],
)
def test_what_two_sizes_do_not_tell_is_made(other):
    assert resized(program((4, 3)), other, 3) is None


class Averaging(nn.Sequential):
    """Divides by the number of examples, which is a number of the program."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        return super().forward(x) / x.shape[0]


def test_a_model_that_reads_the_number_of_examples():
    example = (4,), torch.float32
    programs = StepPrograms(Averaging(), example, CLASSIFICATION, OptimizerSettings())
    assert Sizes(programs, programs(4))(7) == programs(7)
