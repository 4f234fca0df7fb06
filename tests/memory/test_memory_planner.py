"""From a budget to the least costly plan, against all plans that there are."""

import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import EVEN, LIMITS, SHAPE, Costs, costs, everything, made_up, planner

from mest_fed.errors import BudgetError, InputError
from mest_fed.memory import MemoryOptions
from mest_fed.memory import planner as planning
from mest_fed.memory.knobs import cost_order
from mest_fed.memory.planner import UNCERTAINTY, needed

COST_ORDER = cost_order()
orders = st.permutations(COST_ORDER).map(tuple)


@pytest.fixture(autouse=True, scope="module")
def _made_up():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "footprint", made_up)
        yield


@cache
def all_shapes(preference=COST_ORDER):
    return list(everything(LIMITS.knobs(preference)))


def place(shape, preference=COST_ORDER):
    return next(pulled for pulled, made in all_shapes(preference) if made == shape)


def plan(costs, budget, preference=None):
    """Return a plan, or None where there is none."""
    try:
        return planner(costs).plan(budget, preference)
    except BudgetError:
        return None


@pytest.mark.soak
@settings(deadline=None, max_examples=60)
@given(costs, st.floats(0, 1.1), orders)
def test_it_is_the_first_in_the_order_of_preference_that_fits(costs, share, preference):
    """So a knob is pulled only where those before it do not suffice, pulled as far as they go."""
    budget = int(share * (1 + UNCERTAINTY) * max(1, costs(SHAPE)))
    room = budget / (1 + UNCERTAINTY)
    fitting = (shape for _, shape in all_shapes(preference) if costs(shape) <= int(room))
    found = plan(costs, budget, preference)
    expected = next(fitting, None)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.shape == expected
        assert found.footprint.total * (1 + UNCERTAINTY) <= budget == found.budget


@settings(deadline=None, max_examples=60)
@given(costs, st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_larger_budget_never_gives_a_later_plan(costs, budget, more):
    less, rest = plan(costs, budget), plan(costs, budget + more)
    if less is not None:
        assert place(rest.shape) <= place(less.shape)


@settings(deadline=None, max_examples=60)
@given(costs)
def test_the_budget_that_a_refusal_names_does_and_a_byte_less_does_not(costs):
    least = planner(costs).smallest()
    assert least.footprint.total == min(costs(shape) for _, shape in all_shapes())
    assert plan(costs, least.budget).footprint.total == least.footprint.total
    if least.budget:
        with pytest.raises(BudgetError) as caught:
            planner(costs).plan(least.budget - 1)
        assert int(re.search(r"needs (\d+) bytes", str(caught.value))[1]) == least.budget


def test_the_refusal_in_words():
    with pytest.raises(BudgetError) as caught:
        planner().plan(100)
    least = planner().smallest()
    assert str(caught.value) == (
        f"memory budget = 100 B fits no plan; the smallest needs {least.budget} bytes "
        f"({least.budget / 1000:.3g} kB, modelled: density 0.025, micro-batch 1)"
    )


@given(st.integers(0, 2**50))
def test_needed_is_the_least_budget(total):
    budget = needed(total)
    assert int(budget / (1 + UNCERTAINTY)) >= total
    assert total == 0 or int((budget - 1) / (1 + UNCERTAINTY)) < total


def test_a_large_budget_gives_what_is_requested():
    found = planner().plan(10**9)
    assert (found.shape, found.budget) == (SHAPE, 10**9)
    assert planner().runners_up(found) == []


def test_knobs_one_after_another_as_the_budget_shrinks():
    def pulled(budget):
        shape = planner().plan(budget).shape
        return [knob.name for knob in LIMITS.knobs() if knob.pull(shape, knob.steps[0]) != shape]

    whole = EVEN(SHAPE)  # 8 kB of activations, 60 kB of weights
    assert pulled(needed(whole)) == []
    assert pulled(needed(whole) - 1) == ["release_gradients"]
    least = EVEN(replace(SHAPE, memory=MemoryOptions(release_gradients=True)))
    assert pulled(needed(least) - 1) == ["release_gradients", "micro_batch"]
    least = EVEN(replace(SHAPE, micro_batch=1, memory=MemoryOptions(release_gradients=True)))
    assert pulled(needed(least) - 1) == ["release_gradients", "micro_batch", "recompute"]
    memory = MemoryOptions("segments", "int8", release_gradients=True)
    least = EVEN(replace(SHAPE, micro_batch=1, memory=memory))
    assert "density" not in pulled(needed(least))
    assert "density" in pulled(needed(least) - 1)
    assert pulled(planner().smallest().budget) == list(COST_ORDER)


def test_another_order_is_another_plan():
    budget = needed(EVEN(SHAPE) - 21_000)  # more than consuming gives
    orders = (None, cost_order(batch_statistics=True))
    first, batch = (planner().plan(budget, order) for order in orders)
    assert (first.micro_batch, first.memory.recompute) == (4, "none")
    assert (batch.micro_batch, batch.memory.recompute) == (8, "norms")
    last = planner().plan(budget, ("density", *(n for n in COST_ORDER if n != "density")))
    assert last.shape == replace(SHAPE, density=0.1)
    by_limits = planner(limits=replace(LIMITS, batch_statistics=True))
    assert by_limits.plan(budget) == batch
    with pytest.raises(InputError, match=r"memory\.prefer = 'saved'"):
        planner().plan(budget, ("saved",))


@pytest.mark.parametrize("name", COST_ORDER)
def test_fixed_knobs_stay(name):
    fixed = planner(limits=replace(LIMITS, fixed=frozenset({name})))
    (knob,) = [knob for knob in LIMITS.knobs() if knob.name == name]
    smallest = fixed.smallest()
    assert knob.pull(smallest.shape, knob.steps[0]) == smallest.shape
    assert fixed.plan(smallest.budget).shape == smallest.shape
    assert smallest.footprint.total > planner().smallest().footprint.total


@settings(deadline=None, max_examples=40)
@given(costs, st.floats(0, 1))
def test_runners_up_fit_and_differ(costs, share):
    found = plan(costs, int(share * costs(SHAPE) * (1 + UNCERTAINTY)))
    if found is None:
        return
    others = planner(costs).runners_up(found)
    shapes = [found.shape, *(other.shape for other in others)]
    assert len(set(shapes)) == len(shapes)
    for other in others:
        assert other.budget == found.budget >= other.footprint.total * (1 + UNCERTAINTY)


def test_runners_up_spare_what_was_pulled():
    found = planner().plan(needed(EVEN(SHAPE) - 21_000))
    assert found.micro_batch < 8
    assert any(other.micro_batch == 8 for other in planner().runners_up(found))


def test_the_frontier_has_a_plan_for_each_step_of_time():
    plans = list(planner().frontier())
    settings_of = {(p.memory.recompute, p.memory.saved, p.micro_batch) for p in plans}
    assert len(settings_of) == len(plans) == 3 * 3 * 4
    for each in plans:
        assert each.budget == needed(each.footprint.total)
        assert each.density == SHAPE.density


def test_recomputation_that_costs_more_than_it_saves_is_passed_over():
    dear = Costs(1000, 0, (1.0, 1.5, 0.4), (1.0, 0.9, 0.8))
    found = planner(dear).plan(needed(dear(replace(SHAPE, micro_batch=1)) - 1))
    assert found.memory.recompute == "segments"
    dearer = Costs(1000, 0, (1.0, 1.5, 2.0), (1.0, 0.9, 0.8))
    assert planner(dearer).smallest().memory.recompute == "none"
