"""Where buffers lie: nothing that lives at once overlaps, and little room is lost."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import linear_step, random_forward

from mest_fed.runtime.arena import ALIGNMENT, Arena, lower_bound, plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.packing import Block, pack
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.updates import SGD, with_updates

BLOCKS = st.lists(
    st.builds(
        lambda size, start, length: Block(size, start, start + length),
        st.integers(1, 9),
        st.integers(0, 8),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=12,
)


def overlaps(blocks, places):
    """List pairs of blocks that live at once and share bytes."""
    both = list(zip(blocks, places, strict=True))
    return [
        (a, b)
        for number, (a, at) in enumerate(both)
        for b, other in both[:number]
        if a.start <= b.end and b.start <= a.end and at < other + b.size and other < at + a.size
    ]


def peak(blocks, places):
    return max(place + block.size for block, place in zip(blocks, places, strict=True))


def optimum(blocks):
    """Find the least peak: some order of first fit gives it."""
    best = sum(block.size for block in blocks)
    for order in permutations(range(len(blocks))):
        places = {}
        for number in order:
            block = blocks[number]
            near = [(places[it], blocks[it]) for it in places if blocks[it].meets(block)]
            at = 0
            for place, other in sorted(near, key=lambda it: it[0]):
                if at + block.size <= place:
                    break
                at = max(at, place + other.size)
            places[number] = at
        best = min(best, max(places[it] + blocks[it].size for it in places))
    return best


@settings(max_examples=60, deadline=None)
@given(blocks=BLOCKS)
def test_nothing_that_lives_at_once_overlaps(blocks):
    places = pack(blocks)
    assert overlaps(blocks, places) == []
    assert min(places) >= 0
    assert lower_bound(blocks) <= peak(blocks, places) <= sum(it.size for it in blocks)
    at_each = [sum(b.size for b in blocks if b.start <= i <= b.end) for i in range(16)]
    assert lower_bound(blocks) == max(at_each)


def test_against_the_optimum():
    """Of 200 small cases all but a few are placed as well as can be, and none far worse."""
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(200):
        count = rng.integers(3, 6)
        starts, lengths = rng.integers(0, 6, count), rng.integers(0, 4, count)
        sizes = rng.integers(1, 9, count)
        blocks = [
            Block(int(size), int(start), int(start + length))
            for size, start, length in zip(sizes, starts, lengths, strict=True)
        ]
        best = optimum(blocks)
        assert best >= lower_bound(blocks)
        ratios.append(peak(blocks, pack(blocks)) / best)
    assert min(ratios) == 1
    assert sum(ratio == 1 for ratio in ratios) >= 190
    assert max(ratios) < 1.4


def test_best_fit_by_hand():
    """The large one first; then the smallest gap that fits, between two that live."""
    blocks = [Block(8, 0, 9), Block(4, 0, 1), Block(6, 0, 4), Block(4, 2, 3), Block(2, 3, 4)]
    places = pack(blocks)
    assert places[0] == 0
    assert places[2] == 8
    assert places[1] == places[3] == 14
    assert places[4] == 18
    assert Arena(tuple(blocks), tuple(places)).peak == 20


def chain(*operators, kept=None):
    """Build a program of operators of one input, each on the output of the one before."""
    builder = Builder()
    number = builder.buffer("input", (2, 64), role="input")
    made = []
    for name in operators:
        shape = {"y": (64, 2)} if name == "reshape" else {}
        (number,) = builder.operator(name, {"x": number}, shape, name)
        made.append(number)
    if kept is not None:
        builder.operator("add", {"a": made[kept], "b": made[kept]}, {}, "late")
    return builder.end_phase(0).program(), made


def test_an_output_lies_in_an_input_that_ends():
    program, made = chain("relu", "silu", "gelu")
    arena = plan_arena(program)
    assert len(arena.blocks) == 1
    assert {arena.offsets[it] for it in made} == {0}
    assert arena.peak == 2 * 64 * 4


def test_an_input_that_is_read_later_keeps_its_place():
    program, made = chain("relu", "silu", kept=0)
    arena = plan_arena(program)
    assert arena.offsets[made[0]] != arena.offsets[made[1]]


def test_a_view_takes_no_memory_while_its_source_lives():
    program, made = chain("relu", "reshape", kept=0)
    arena = plan_arena(program)
    assert arena.offsets[made[0]] == arena.offsets[made[1]]
    sizes = sorted(block.size for block in arena.blocks)
    assert sizes in ([512], [512, 512])


def test_a_view_of_what_is_added_to_has_its_own_place():
    builder = Builder()
    x = builder.buffer("input", (4,), role="input")
    (a,) = builder.operator("relu", {"x": x}, {}, "a")
    (view,) = builder.operator("reshape", {"x": a}, {"y": (2, 2)}, "view")
    builder.operator("accumulate", {"a": x}, {"into": a})
    builder.operator("relu", {"x": view}, {}, "late")
    builder.operator("relu", {"x": a}, {}, "later")
    arena = plan_arena(builder.end_phase(0).program())
    assert arena.offsets[a] != arena.offsets[view]


def test_one_gradient_alone_lies_in_dy():
    """Of dx and dresidual, which both may, one does; else they would be one."""
    builder = Builder()
    planes = {it: builder.buffer(it, (2, 4, 8), role="input") for it in ("x", "residual")}
    of_channels = {it: builder.buffer(it, (4,), role="parameter") for it in ("gamma", "beta")}
    (xx,) = builder.operator("relu", {"x": planes["x"]}, {}, "xx")
    _, mean, scale = builder.operator(
        "group_norm", {"x": xx, **of_channels}, {}, "y", groups=2, epsilon=0.1, relu=False
    )
    (dy,) = builder.operator("relu", {"x": planes["residual"]}, {}, "dy")
    inputs = {"x": xx, "mean": mean, "scale": scale, "gamma": of_channels["gamma"], "dy": dy}
    outputs = {"dresidual": builder.buffer("dresidual", (2, 4, 8))}
    dx, *_ = builder.operator("group_norm_gradient", inputs, outputs, "dx", groups=2, relu=False)
    arena = plan_arena(builder.end_phase(0).program())
    assert arena.offsets[outputs["dresidual"]] == arena.offsets[dy]
    assert arena.offsets[dx] != arena.offsets[dy]


def test_temporary_buffers_alone_have_places_which_are_aligned():
    program = linear_step()
    arena = plan_arena(program)
    assert set(arena.offsets) == set(program.of_role("temporary"))
    assert {program.buffers[it].name for it in arena.offsets} == {
        "loss:probabilities",
        "logits:gradient",
    }
    assert all(place % ALIGNMENT == 0 for place in arena.places)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_step_in_the_arena_has_the_same_bits(seed):
    """A buffer that another one overwrote would show in a weight, the loss or the logits."""
    forward = with_loss(random_forward(seed), "logits")
    program = with_updates(with_gradients(forward), SGD(momentum=0.9))
    arena = plan_arena(program)
    assert overlaps(arena.blocks, arena.places) == []
    assert arena.peak >= arena.lower_bound
    rng = np.random.default_rng(seed)
    shapes = {it.name: it.shape for it in program.buffers}
    values = {
        program.buffers[it].name: rng.normal(size=program.buffers[it].shape)
        for it in program.of_role("parameter")
    }
    inputs = {
        "input": rng.normal(size=shapes["input"]),
        "targets": rng.integers(0, 5, shapes["targets"]),
        "rates": [0.1],
        "share": [0.2],
    }
    runs = [Reference(program, values, arena=it) for it in (None, arena)]
    for _ in range(2):
        for run in runs:
            run.step(inputs)
        for name in (*values, "loss", "logits"):
            np.testing.assert_array_equal(runs[0].read(name), runs[1].read(name), err_msg=name)


@pytest.mark.parametrize("blocks", [[], [Block(64, 0, 0)]])
def test_few_blocks(blocks):
    arena = Arena(tuple(blocks), tuple(pack(blocks)))
    assert arena.peak == arena.lower_bound == sum(it.size for it in blocks)
