"""A budget and a deadline: the least costly plan that keeps both, against all plans there are."""

from dataclasses import dataclass, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import LIMITS, SHAPE, costs, everything, made_up, planner

from mest_fed.errors import BudgetError, DeadlineError
from mest_fed.memory import planner as planning
from mest_fed.memory.knobs import cost_order
from mest_fed.memory.planner import UNCERTAINTY, Pace


@pytest.fixture(autouse=True, scope="module")
def _made_up():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "footprint", made_up)
        yield


@dataclass(frozen=True)
class Seconds:
    """Seconds of a round: each knob has its share, whatever the others are at."""

    call: float = 0.5
    recompute: tuple[float, float, float] = (1.0, 1.2, 1.5)
    saved: tuple[float, float, float] = (1.0, 1.1, 1.2)

    def __call__(self, shape):
        memory = shape.memory
        recompute = dict(zip(("none", "norms", "segments"), self.recompute, strict=True))
        saved = dict(zip(("fp32", "fp16", "int8"), self.saved, strict=True))
        calls = 1 + self.call * 8 / shape.micro_batch
        products = shape.density / 0.2 * (12 - memory.frozen) / 12
        return calls * products * recompute[memory.recompute] * saved[memory.saved]


factors = st.floats(0.5, 2)
clocks = st.builds(
    Seconds,
    call=st.floats(0, 1),
    recompute=st.tuples(st.just(1.0), factors, factors),
    saved=st.tuples(st.just(1.0), factors, factors),
)


@cache
def all_shapes():
    return [
        shape for _, shape in sorted(everything(LIMITS.knobs(cost_order())), key=lambda it: it[0])
    ]


@settings(deadline=None, max_examples=25)
@given(costs, clocks, st.floats(0.02, 1.1), st.floats(0.02, 1.1))
def test_it_is_the_first_in_the_order_of_preference_that_keeps_both(costs, clock, share, time):
    budget = int(costs(SHAPE) * share)
    room, deadline = int(budget / (1 + UNCERTAINTY)), clock(SHAPE) * time
    fitting = [shape for shape in all_shapes() if costs(shape) <= room]
    in_time = [shape for shape in fitting if clock(shape) <= deadline]
    try:
        found = planner(costs).plan(budget, pace=Pace(clock, deadline)).shape
    except BudgetError:
        assert not fitting
    except DeadlineError:
        assert not in_time
    else:
        assert found == in_time[0]


def test_a_deadline_that_the_plan_of_the_budget_meets_changes_nothing():
    pace = Pace(Seconds(), 1.5)
    assert planner().plan(10**9, pace=pace).shape == SHAPE
    assert planner().plan(10**9, pace=replace(pace, deadline=1.4)).shape != SHAPE


def test_a_large_budget_lowers_the_density_first():
    """Of what makes rounds faster, least harm is a lower density, then frozen segments."""
    found = planner().plan(10**9, pace=Pace(Seconds(), 0.75))
    assert found.shape == replace(SHAPE, density=0.1)
    fixed = planner(limits=replace(LIMITS, fixed=frozenset({"density"})))
    found = fixed.plan(10**9, pace=Pace(Seconds(), 1.25))
    assert (found.density, found.memory.frozen) == (0.2, 2)


def test_recomputation_buys_a_larger_micro_batch():
    """40,000 bytes are weights; 3,000 are left for 8 images of 1,000 each, and 3.7 seconds."""
    budget, clock = int(43_000 * (1 + UNCERTAINTY)) + 1, Seconds(call=1.0)
    alone = planner().plan(budget).shape
    assert (alone.micro_batch, alone.memory.recompute, clock(alone)) == (2, "none", 5.0)
    faster = planner().plan(budget, pace=Pace(clock, 3.7)).shape
    assert (faster.micro_batch, faster.memory.recompute) == (4, "norms")
    assert clock(faster) == pytest.approx(3 * 1.2)


def test_the_refusal_says_what_the_fastest_takes():
    clock = Seconds()
    with pytest.raises(DeadlineError) as caught:
        planner().plan(10**9, pace=Pace(clock, 0.01))
    least = min(map(clock, all_shapes()))
    assert str(caught.value) == (
        "deadline = 10 ms is met by no plan within the memory budget = 1 GB; the fastest takes "
        f"{least * 1000:.0f} ms a round (modelled: density 0.025, micro-batch 8)"
    )


def test_runners_up_are_in_time_too():
    clock = Seconds(call=1.0)
    budget, pace = int(43_000 * (1 + UNCERTAINTY)) + 1, Pace(clock, 3.7)
    plan = planner().plan(budget, pace=pace)
    others = planner().runners_up(plan, pace=pace)
    assert others
    assert all(clock(other.shape) <= pace.deadline for other in others)
