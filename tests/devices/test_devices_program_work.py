"""What compiled steps take, by hand."""

from dataclasses import replace

import pytest

from mest_fed.devices import Work, load_profile, program_step_work, train_seconds
from mest_fed.devices.cost import REFERENCE
from mest_fed.devices.program_work import PROGRAM_SECONDS
from mest_fed.runtime.program import Program
from mest_fed.runtime.program_parts import Buffer, Operator

ROOFS = REFERENCE.flops["dense"] / REFERENCE.memory_rate  # operations in the time of a byte


def step(size):
    """Return relu(x) for a group of two, then a product of two parameters once a batch."""
    buffers = (
        Buffer("x", (2, size), role="input"),
        Buffer("y", (2, size), role="output"),
        Buffer("w", (80, 40), role="parameter"),
        Buffer("v", (60, 40), role="parameter"),
        Buffer("product", (80, 60)),
    )
    operators = (Operator("relu", (0,), (1,)), Operator("linear", (2, 3, -1), (4,)))
    return Program(buffers, operators, (1, 0, 1))


def test_an_operator_takes_its_work_or_its_bytes():
    found = program_step_work(step(5))
    assert found.example == Work(moved_bytes=4 * 2 * 5)  # in and out
    assert found.group == Work(core_seconds=PROGRAM_SECONDS.operator)
    flops, moved = 2 * 80 * 60 * 40, 4 * (80 * 40 + 60 * 40 + 80 * 60)
    assert flops > ROOFS * moved
    assert found.step == Work(flops, core_seconds=PROGRAM_SECONDS.operator + PROGRAM_SECONDS.step)


def test_a_batch_takes_its_examples_groups_and_one_step():
    found = program_step_work(step(5))
    whole = found.total(examples=8, groups=4, steps=1)
    assert whole.moved_bytes == 8 * 40
    assert whole.core_seconds == pytest.approx(5 * PROGRAM_SECONDS.operator + PROGRAM_SECONDS.step)
    device = replace(
        load_profile("rpi-4"), flops={"dense": 1e6, "block": 1e6}, memory_rate=1e3, core_speed=0.5
    )
    seconds = train_seconds(device, whole, "block:8")
    assert seconds == pytest.approx(0.384 + 0.32 + 2 * whole.core_seconds)


@pytest.mark.parametrize(
    ("rows", "each"), [(1, PROGRAM_SECONDS.single), (4, PROGRAM_SECONDS.strip)]
)
def test_places_of_linear_weights_cost_each_group(rows, each):
    buffers = (
        Buffer("x", (2, 16), role="input"),
        Buffer("values", (6, rows), role="parameter"),
        Buffer("slots", (6,), "int32", role="parameter"),
        Buffer("y", (2, 8), role="output"),
    )
    shape = {"weight_shape": (8, 16), "rows": rows}
    program = Program(buffers, (Operator("sparse_linear", (0, 1, 2, -1), (3,), shape),), (1, 0, 0))
    group = program_step_work(program).group
    assert group == Work(core_seconds=PROGRAM_SECONDS.operator, gather_seconds=6 * rows * each)
    board = replace(load_profile("rpi-4"), core_speed=0.5)
    calls = 2 * PROGRAM_SECONDS.operator
    assert train_seconds(board, group, "block") == pytest.approx(calls + 12 * rows * each)
    board = replace(board, gather_speed=0.25)  # of its own, where it was timed
    assert train_seconds(board, group, "block") == pytest.approx(calls + 24 * rows * each)


def test_planes_cost_a_core():
    buffers = (
        Buffer("x", (2, 3, 4, 4), role="input"),
        Buffer("y", (2, 3, 4, 4), role="output"),
    )
    program = Program(buffers, (Operator("relu", (0,), (1,)),), (1, 0, 0))
    assert program_step_work(program).example.core_seconds == pytest.approx(
        3 * PROGRAM_SECONDS.plane
    )
