"""The knobs: their steps, and what a step changes."""

import subprocess
import sys
from dataclasses import replace

import pytest
from planner_cases import LIMITS, SHAPE, everything

from mest_fed.errors import InputError
from mest_fed.memory import (
    DENSITY_STEPS,
    FORMATS,
    RECOMPUTE,
    MemoryOptions,
    PlanLimits,
)
from mest_fed.memory.knobs import cost_order

COST_ORDER = cost_order()


def steps(limits, name):
    (knob,) = [knob for knob in limits.knobs() if knob.name == name]
    assert knob.pull(limits.shape, knob.steps[0]) == limits.shape  # the first step is the limits
    return list(knob.steps)


def limits(batch=8, micro_batch=None, **what):
    shape = replace(SHAPE, batch=batch, micro_batch=micro_batch or batch)
    return PlanLimits(shape, **what)


def memory_saving(**options):
    return PlanLimits(replace(SHAPE, memory=MemoryOptions(**options)), segments=6)


def test_the_knobs_come_in_the_order_of_preference():
    assert [knob.name for knob in LIMITS.knobs()] == list(COST_ORDER)
    batch = replace(LIMITS, batch_statistics=True)
    assert [knob.name for knob in batch.knobs()] == list(cost_order(batch_statistics=True))
    assert sorted(COST_ORDER) == sorted(cost_order(batch_statistics=True))
    assert cost_order(batch_statistics=True) != COST_ORDER
    given = COST_ORDER[::-1]
    assert [knob.name for knob in LIMITS.knobs(given)] == list(given)


@pytest.mark.parametrize("wrong", [COST_ORDER[1:], (*COST_ORDER, "saved"), (), ("bits",) * 7])
def test_an_order_names_each_knob_once(wrong):
    with pytest.raises(
        InputError, match=r"memory.prefer = .* allowed: (each of )?release_gradients, micro_batch"
    ):
        LIMITS.knobs(wrong)


@pytest.mark.parametrize(
    ("batch", "least", "sizes"),
    [
        (16, 1, [16, 8, 4, 2, 1]),
        (11, 1, [11, 6, 3, 2, 1]),
        (16, 5, [16, 8, 5]),
        (16, 16, [16]),
        (16, 99, [16]),
        (1, 1, [1]),
    ],
)
def test_micro_batches_halve_upwards_to_the_least(batch, least, sizes):
    assert steps(limits(batch, least_micro_batch=least), "micro_batch") == sizes


def test_micro_batches_start_at_what_is_requested():
    assert steps(limits(16, 5), "micro_batch") == [5, 3, 2, 1]


def test_densities_are_shares_of_the_requested_one():
    assert steps(LIMITS, "density") == [0.2 * step for step in DENSITY_STEPS]
    assert steps(replace(LIMITS, sparse=False), "density") == [0.2]


@pytest.mark.parametrize(
    ("segments", "frozen", "expected"),
    [
        (0, 0, [0]),
        (2, 0, [0, 1]),
        (3, 0, [0, 1, 2]),
        (16, 0, [0, 5, 10]),
        (6, 2, [2, 4]),
        (6, 5, [5]),
    ],
)
def test_up_to_two_thirds_of_the_segments_freeze(segments, frozen, expected):
    shape = replace(SHAPE, memory=MemoryOptions(frozen=frozen))
    assert steps(PlanLimits(shape, segments=segments), "frozen") == expected


def test_savings_that_are_requested_are_where_their_knobs_start():
    assert steps(LIMITS, "recompute") == list(RECOMPUTE)
    assert steps(LIMITS, "saved") == ["fp32", "fp16", "int8"]
    assert steps(memory_saving(recompute="norms"), "recompute") == ["norms", "segments"]
    assert steps(memory_saving(saved="fp16"), "saved") == ["fp16", "int8"]
    assert steps(memory_saving(release_gradients=True), "release_gradients") == [True]
    without = PlanLimits(replace(SHAPE, momentum=False))
    assert steps(without, "momentum") == [False]


def test_compiled_steps_are_stored_as_bf16_before_torch_packs():
    compiled = replace(LIMITS, compiled=True)
    assert steps(compiled, "saved") == ["fp32", "bf16", "fp16", "int8"]
    requested = replace(memory_saving(saved="bf16"), compiled=True)
    assert steps(requested, "saved") == ["bf16", "fp16", "int8"]
    assert [knob.name for knob in LIMITS.knobs() if knob.extremes] == ["recompute"]
    assert [knob.name for knob in compiled.knobs() if knob.extremes] == ["recompute", "saved"]


def test_without_segments_none_are_recomputed():
    assert steps(PlanLimits(SHAPE), "recompute") == ["none", "norms"]
    requested = PlanLimits(replace(SHAPE, memory=MemoryOptions("segments")))
    assert steps(requested, "recompute") == ["segments"]


@pytest.mark.parametrize("saved", [name for name in FORMATS if name in ("mask", "bf16")])
def test_formats_that_are_only_chosen_by_hand_stay(saved):
    assert steps(memory_saving(saved=saved), "saved") == [saved]


@pytest.mark.parametrize("name", COST_ORDER)
def test_a_fixed_knob_is_none(name):
    knobs = replace(LIMITS, fixed=frozenset({name})).knobs()
    assert [knob.name for knob in knobs] == [other for other in COST_ORDER if other != name]


def test_a_knob_changes_its_own_part_alone():
    for knob in LIMITS.knobs():
        pulled = knob.pull(SHAPE, knob.steps[-1])
        assert pulled != SHAPE
        back = knob.pull(pulled, knob.steps[0])
        assert back == SHAPE


def test_all_combinations_are_different_plans():
    shapes = [shape for _, shape in everything(LIMITS.knobs())]
    assert len(set(shapes)) == len(shapes) == 2 * 4 * 3 * 3 * 4 * 2 * 3
    assert shapes[0] == SHAPE


OWN = """
from dataclasses import replace

def halved(limits):
    def pull(shape, step):
        return replace(shape, micro_batch=step)
    return [limits.shape.micro_batch, limits.shape.micro_batch // 2], pull

def no_steps(limits):
    return [], None

def wrong_pull(limits):
    return [1], lambda shape, step: step

def raises(limits):
    raise KeyError("steps")
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN, encoding="utf-8")
    return file


def test_a_knob_of_ones_own_stands_anywhere_in_the_order(own):
    name = f"{own}:halved"
    assert name not in [knob.name for knob in LIMITS.knobs()]
    first, *others = LIMITS.knobs([name, *COST_ORDER])
    assert [knob.name for knob in others] == list(COST_ORDER)
    assert first.pull(SHAPE, first.steps[1]).micro_batch == SHAPE.micro_batch // 2


@pytest.mark.parametrize(
    ("attribute", "line"),
    [
        ("no_steps", "no_steps' gives .*; allowed: \\(steps, pull\\)"),
        ("wrong_pull", "wrong_pull': pull gives 1; allowed: a TrainingShape"),
        ("raises", "raises': KeyError: 'steps'"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_a_wrong_knob_of_ones_own_is_named(own, attribute, line):
    with pytest.raises(InputError, match=line):
        [knob.pull(SHAPE, 1) for knob in LIMITS.knobs([f"{own}:{attribute}", *COST_ORDER])]


@pytest.mark.soak
@pytest.mark.parametrize("as_file", [True, False])
def test_a_registered_knob_joins_every_order(as_file, tmp_path):
    script = (
        "from mest_fed.catalogue import KNOBS\n"
        "from mest_fed.config import from_table\n"
        "from mest_fed.task import Task\n"
        "@KNOBS.register('mine')\n"
        "def mine(limits):\n"
        "    return [0], lambda shape, step: shape\n"
        "order = ['mine', *(name for name in KNOBS if name != 'mine')]\n"
        "config = from_table({'memory': {'prefer': ', '.join(order)}}, 'here')\n"
        "print(Task(config).plan(10**9, 'it').micro_batch)\n"
        "print(Task(from_table({}, 'here')).plan(10**9, 'it').micro_batch)\n"
        "try:\n"
        "    from_table({'memory': {'prefer': ', '.join(order[1:])}}, 'here')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script, encoding="utf-8")
    what = [file] if as_file else ["-c", script]
    done = subprocess.run([sys.executable, *what], capture_output=True, text=True, check=True)
    first, second, line = done.stdout.splitlines()
    assert first == second
    assert "missing: mine; allowed: each of release_gradients" in line


@pytest.mark.parametrize(
    ("segments", "frozen", "expected"),
    [(0, 0, [0]), (1, 0, [0]), (5, 0, [0, 1, 2, 3, 4]), (5, 3, [3, 4])],
)
def test_where_freezing_comes_first_it_is_segment_by_segment(segments, frozen, expected):
    shape = replace(SHAPE, memory=MemoryOptions(frozen=frozen))
    order = ("frozen", *(name for name in COST_ORDER if name != "frozen"))
    (knob, *_) = PlanLimits(shape, segments=segments).knobs(order)
    assert knob.name == "frozen"
    assert list(knob.steps) == expected


def test_each_number_of_frozen_segments_is_tried():
    order = ("frozen", *(name for name in COST_ORDER if name != "frozen"))
    assert [knob.name for knob in LIMITS.knobs(order) if knob.uneven] == ["frozen"]
    assert not any(knob.uneven for knob in LIMITS.knobs())
