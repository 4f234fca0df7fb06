"""The pass that adds gradients up over groups, what takes groups, and how large one is."""

from functools import cache

import pytest
import torch
from program_cases import linear_step
from step_cases import STEPS, dtype_of, model_of
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.batches import GROUPS_AT_ONCE, lanes_of
from mest_fed.runtime.build import Builder
from mest_fed.runtime.passes.groups import group_size, with_groups
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tasks import Classification


def programs_of(name):
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    return StepPrograms(model, (shape, dtype_of(shape)), Classification(), OptimizerSettings())


def names(program):
    return [it.name for it in program.operators]


def test_a_linear_step_by_hand():
    single = linear_step()
    assert not single.takes_groups
    grouped = with_groups(single)
    assert grouped.takes_groups
    assert names(grouped) == [
        "linear",
        "cross_entropy",
        "accumulate",
        "cross_entropy_gradient",
        "linear_weight_gradient",
        "accumulate",
        "sgd",
    ]
    assert grouped.phases == (3, 3, 1)
    assert grouped.per_group == 6
    assert grouped.examples == 4
    sums = {grouped.buffers[it].name for it in grouped.of_role("sum")}
    assert sums == {"loss", "w:gradient"}
    assert with_groups(grouped) == grouped


def test_gradients_are_added_where_they_are_made():
    """Or right behind; but that of a weight that is used twice lives until it is whole."""
    program = programs_of("resnet8 block")(2)
    added = {
        operator.inputs[0]: place
        for place, operator in enumerate(program.operators)
        if operator.name == "accumulate" and program.buffers[operator.outputs[0]].role == "sum"
    }
    made = [it for it in program.operators if it.name.endswith("_added")]
    sums = {number for it in made for number in it.outputs if number in program.of_role("sum")}
    assert len(added) == 3  # of the linear layer, and the loss
    assert len(sums) + len(added) == 1 + len(program.of_role("parameter"))
    blocks = [it for it in plan_arena(program).blocks if added.keys() & set(it.buffers)]
    assert len(blocks) == len(added)
    for block in blocks:
        assert block.buffers[0] in added
        assert block.end == added[block.buffers[0]] == block.start + 1

    linear = nn.Linear(3, 3)
    twice = StepPrograms(
        nn.Sequential(linear, linear), ((3,), torch.float32), Classification(), OptimizerSettings()
    )(2)
    assert twice.takes_groups
    last = names(twice)[twice.phases[0] : twice.per_group]
    assert last.count("accumulate") == 4
    assert last[-1] == "accumulate"


@pytest.mark.parametrize("name", STEPS)
def test_batch_norm_alone_takes_one_group(name):
    program = programs_of(name)(2)
    kinds = set(names(program))
    assert program.takes_groups == ("batch_norm" not in kinds)
    assert set(program.of_role("sum")) & set(plan_arena(program).offsets) == set()


def touched(*operators):
    """Build a step of an input, a parameter, a state and a sum, of one forward operator."""
    builder = Builder()
    numbers = {
        "x": builder.buffer("x", (2, 3), role="input"),
        "sum": builder.buffer("sum", (2, 3), role="sum"),
        "state": builder.buffer("state", (2, 3), role="state"),
        "y": builder.buffer("y", (2, 3)),
    }
    for phase, (name, given, made) in enumerate(operators):
        builder.operator(
            name,
            {it: numbers[number] for it, number in given.items()},
            {it: numbers[number] for it, number in made.items()},
        )
        builder.end_phase(2 * phase)
    return builder.program()


ADD = ("accumulate", {"a": "x"}, {"into": "sum"})


@pytest.mark.parametrize(
    ("takes", "operators"),
    [
        (True, [ADD]),
        (True, [ADD, ("accumulate", {"a": "sum"}, {"into": "state"})]),
        (False, [("relu", {"x": "x"}, {"y": "sum"})]),
        (False, [("relu", {"x": "sum"}, {"y": "y"})]),
        (False, [("accumulate", {"a": "x"}, {"into": "state"})]),
        (False, [ADD, ("accumulate", {"a": "x"}, {"into": "state"})]),
        (False, [("relu", {"x": "x"}, {"y": "y"}), ("accumulate", {"a": "y"}, {"into": "state"})]),
    ],
)
def test_what_takes_groups(takes, operators):
    assert touched(*operators).takes_groups == takes


def test_a_sum_is_written_once_or_added_to():
    with pytest.raises(InputError, match="writes 'sum', which is written"):
        touched(ADD, ("relu", {"x": "x"}, {"y": "sum"}))
    builder = Builder()
    for name, shape in (("x", (2, 3)), ("other", (3, 3))):
        builder.operator("relu", {"x": builder.buffer(name, shape, role="input")}, {})
    with pytest.raises(InputError, match=r"first dimensions .* \[\(2,\), \(3,\)\]"):
        _ = builder.end_phase(0).program().examples


def test_the_size_of_a_group():
    programs = cache(programs_of("resnet8 block"))
    of_one = (plan_arena(programs(4)).peak - plan_arena(programs(2)).peak) / 2
    sizes = [group_size(programs, 11, int(most * of_one)) for most in (3, 5, 10, 11.1)]
    assert sizes == [2, 4, 8, 11]
    sums = sum(programs(2).buffers[it].bytes for it in programs(2).of_role("sum"))
    least = group_size(programs, 11, 0)
    assert least == next(it for it in (1, 2, 4, 8) if it * of_one >= sums)
    assert group_size(programs, 1) == 1
    assert group_size(programs_of("resnet8 batch"), 11, 0) == 11


def test_a_large_weight_is_no_reason_for_small_groups():
    """Its gradient takes 3 MB whatever the group; what an example holds is some 40 kB."""
    model = nn.Sequential(nn.Linear(192, 4096), nn.Linear(4096, 10))
    programs = StepPrograms(model, ((192,), torch.float32), Classification(), OptimizerSettings())
    assert plan_arena(programs(2)).peak > 2**21
    assert group_size(programs, 11, 2**20) == 11


def test_no_more_lanes_than_groups_that_run_at_once():
    """A lane has an arena of its own."""
    grouped = with_groups(linear_step())
    assert [lanes_of(grouped, threads, batch=64) for threads in (1, 2, 16)] == [
        1,
        2,
        GROUPS_AT_ONCE,
    ]
    assert lanes_of(grouped, 16, batch=8) == 2
    assert lanes_of(linear_step(), 16, batch=64) == 0
