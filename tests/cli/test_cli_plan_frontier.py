"""Where plans stand in the picture."""

import pytest

from mest_fed.catalogue import FORMATS
from mest_fed.cli.planning.frontier import front, place
from mest_fed.memory import Footprint, MemoryOptions, Plan, TrainingShape


def plan(peak, micro_batch=4, density=0.1, **memory):
    shape = TrainingShape(density, "uniform", micro_batch, 8, memory=MemoryOptions(**memory))
    return Plan(100, shape, Footprint(values=peak, runtime=0))


def test_a_lane_for_each_way_and_a_band_for_each_time():
    slow = plan(5, recompute="segments")
    timed = [(plan(9), 1.0), (plan(8, 2), 1.0), (plan(7, saved="int8"), 1.0), (slow, 1.3)]
    points = place(timed, timed[1])
    heights = {(s.plan.memory.recompute, s.plan.memory.saved): s.height for s in points}
    assert heights == {("none", "int8"): 0, ("none", "fp32"): 1, ("segments", "fp32"): 3}
    assert len(points) == 4
    assert [point.plan.micro_batch for point in points if point.chosen] == [2]


def test_plans_that_recomputation_makes_no_different_are_one():
    same = [(plan(9), 1.0), (plan(9, recompute="norms"), 1.0)]
    chosen = plan(9, recompute="norms")
    (point,) = place(same, (chosen, 1.0))
    assert point.plan is chosen


def test_the_front_has_the_fastest_of_one_density():
    timed = [
        (plan(9), 1.0),
        (plan(8, 2), 1.0),
        (plan(6, recompute="segments"), 1.3),
        (plan(8, 1, recompute="segments"), 1.3),
    ]
    points = place(timed, (plan(1, density=0.05), 0.5))
    assert [(point.time, point.peak) for point in front(points, 0.1)] == [(1.0, 8), (1.3, 6)]


def test_formats_of_ones_own_have_lanes_of_their_own():
    own = [f"/there/own.py:{name}" for name in ("fmt", "other")]
    timed = [(plan(9, saved="int8"), 1.0)] + [(plan(7, saved=name), 1.0) for name in own]
    points = place(timed, timed[1])
    heights = {point.plan.memory.saved: point.height for point in points}
    assert [heights[name] for name in ("int8", *own)] == [2, 1, 0]


@pytest.mark.parametrize("saved", FORMATS)
def test_every_format_has_a_lane(saved):
    (point,) = place([], (plan(9, saved=saved), 1.0))
    assert point.height == 0
