"""Planes in place: where elements lie, and who may have them there."""

import json

import numpy as np
import pytest
import torch
from native_cases import Buffer, Operator, Program, one

from mest_fed.errors import InputError
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.planes import Planes, elements, size_of
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference


def test_the_layout_by_hand():
    """Channels of 3 x 5 with a row of zeros are 20 floats, taken as 32; 6 in front as 16."""
    planes = Planes(2, 4, 3, 5, 1)
    assert (planes.pitch, planes.lead, planes.image, planes.floats) == (32, 16, 144, 352)
    assert size_of((2, 4, 3, 5), 1) == 352
    assert size_of((2, 4, 3, 5), 0) == 120
    memory = np.arange(352)
    found = elements(memory, (2, 4, 3, 5), 1)
    assert found[0, 0, 0, 0] == 16
    assert found[1, 3, 2, 4] == 144 + 16 + 3 * 32 + 2 * 5 + 4
    found[...] = 0
    assert np.count_nonzero(memory) == 352 - 120 - 1  # the first float was 0


def copied(margin, between="relu"):
    """Return x -> planes -> a function on them -> C order, of 2 images of 3 channels of 4 x 5."""
    builder = Builder()
    x = builder.buffer("x", (2, 3, 4, 5), role="input")
    for name, operator in (("first", "copy"), ("second", between)):
        (x,) = builder.operator(operator, {"x": x}, {}, name)
        builder.margin(x, margin)
    (y,) = builder.operator("copy", {"x": x}, {}, "y")
    builder.role(y, "output")
    return builder.end_phase(0).program()


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_both_runtimes_convert(margin):
    program = parse_program(copied(margin).to_json())
    assert [it.margin for it in program.buffers] == [0, margin, margin, 0]
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    arena = plan_arena(program)
    reference = Reference(program, {}, arena=arena)
    reference.step({"x": x})
    runtime = Runtime(program, arena.offsets, arena.peak)
    runtime.write("x", x)
    runtime.run()
    for held in (reference, runtime):
        np.testing.assert_array_equal(held.read("y"), np.maximum(x, 0))
        np.testing.assert_array_equal(held.read("second"), np.maximum(x, 0))


def test_planes_are_not_written_over_c_order():
    """The relu may lie in its input, which has the same margin; the copies may not."""
    program = copied(1)
    offsets = plan_arena(program).offsets
    assert offsets[1] == offsets[2] != offsets[3]
    same = copied(0)
    assert len(set(plan_arena(same).offsets.values())) == 1


def test_a_buffer_is_written_with_its_margins():
    program = Program(
        [Buffer("x", (1, 2, 3, 3), margin=1), Buffer("y", (1, 2, 3, 3))],
        [Operator("copy", (0,), (1,))],
    )
    runtime = Runtime(program, {0: 0}, 4 * size_of((1, 2, 3, 3), 1))
    runtime._arena[...] = 255
    runtime.write("x", np.ones((1, 2, 3, 3)))
    assert np.count_nonzero(runtime._arena.view(np.float32)) == 18
    assert runtime.memory("x").shape == (1, 2, 3, 3)
    runtime.run()
    np.testing.assert_array_equal(runtime.read("y"), 1)


def test_margins_where_none_are_allowed():
    def table(changes):
        program = copied(0).as_table()
        for number, margin in changes.items():
            program["buffers"][number]["margin"] = margin
        return json.dumps(program)

    assert parse_program(table({1: 1, 2: 3})).buffers[2].margin == 3
    with pytest.raises(InputError, match=r"buffers\[3\].margin = 1 is not allowed"):
        parse_program(table({3: 1}))
    builder = Builder()
    x = builder.buffer("x", (1, 2, 3, 3), role="input")
    (y,) = builder.operator("copy", {"x": x}, {})
    builder.operator("reshape", {"x": y}, {"y": (2, 9)})
    builder.margin(y, 1)
    with pytest.raises(InputError, match=r"reshape.x = .*margin 1.* allowed: margin 0"):
        builder.end_phase(0).program()


@pytest.mark.parametrize(
    ("shape", "offset", "margin"),
    [
        ((2, 2, 3, 3), 0, 65),
        ((2, 2, 3, 3), 0, -1),
        ((2, 2, 3, 3), 4, 1),
        ((2, 2, 3, 3), -1, 1),
        ((2, 6, 3), 0, 1),
        ((2, 2, 3, 3), 1472, 1),
        ((1, 1, 2**20, 2**20), 0, 1),
    ],
)
def test_the_runtime_checks_margins(shape, offset, margin):
    program = one("relu", {"x": shape}, {"y": shape})
    program.buffers[0].margin = margin
    offsets = {} if offset < 0 else {0: offset}
    offsets[1] = 1024
    with pytest.raises(InputError, match=r"buffers\[0\]"):
        Runtime(program, offsets, 2048)


def test_the_runtime_refuses_margins_of_other_arguments():
    program = one("reshape", {"x": torch.zeros(1, 2, 3, 3)}, {"y": (2, 9)})
    program.buffers[0].margin = 1
    with pytest.raises(InputError, match="x has margin 1; allowed: 0"):
        Runtime(program, {0: 0}, 4096)
