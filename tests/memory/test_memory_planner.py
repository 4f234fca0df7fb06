"""From a budget to a plan: what is given up first, and what the refusal says."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cases import SMALL, resnet

from mest_fed.errors import BudgetError, InputError
from mest_fed.memory import DENSITY_STEPS, TrainingShape, candidates, make_plan, trace_model
from mest_fed.memory.footprint import RUNTIME
from mest_fed.sparsity import MestEM, MestEMS, Method, RigL

TRACE = trace_model(resnet("block"), SMALL)
WISH = TrainingShape(density=0.2, distribution="uniform", micro_batch=16, batch=16)
PREFERENCE = [plan.shape for plan in candidates(TRACE, MestEM(), WISH)]


def test_micro_batches_shrink_before_density_does():
    order = [(plan.density, plan.micro_batch) for plan in candidates(TRACE, MestEM(), WISH)]
    densities = [0.2 * step for step in DENSITY_STEPS]
    assert order == [(density, micro) for density in densities for micro in (16, 8, 4, 2, 1)]


def test_odd_batches_halve_upwards():
    wish = TrainingShape(0.2, "uniform", 11, 11)
    assert [p.micro_batch for p in candidates(TRACE, MestEM(), wish)][:5] == [11, 6, 3, 2, 1]


@pytest.mark.parametrize(
    ("smallest", "sizes"), [(1, [16, 8, 4, 2, 1]), (5, [16, 8]), (16, [16]), (99, [16])]
)
def test_batch_statistics_may_ask_for_a_smallest_micro_batch(smallest, sizes):
    plans = candidates(TRACE, MestEM(), WISH, smallest)
    assert [plan.micro_batch for plan in plans] == sizes * len(DENSITY_STEPS)


def test_a_dense_model_can_only_shrink_its_micro_batch():
    dense = trace_model(resnet(), SMALL)
    plans = list(candidates(dense, Method(), WISH))
    assert [(plan.density, plan.micro_batch) for plan in plans] == [
        (0.2, micro) for micro in (16, 8, 4, 2, 1)
    ]


def test_a_large_budget_gives_the_wish():
    plan = make_plan(TRACE, MestEM(), WISH, 10**9)
    assert plan.shape == WISH
    assert plan.budget == 10**9


@settings(deadline=None, max_examples=60)
@given(
    st.integers(RUNTIME + 10**5, RUNTIME + 10**6), st.sampled_from([MestEM(), MestEMS(), RigL()])
)
def test_a_plan_fits_its_budget_and_is_the_first_that_does(budget, method):
    plans = list(candidates(TRACE, method, WISH))
    fitting = [plan for plan in plans if plan.footprint.total <= budget]
    if not fitting:
        with pytest.raises(BudgetError):
            make_plan(TRACE, method, WISH, budget)
        return
    plan = make_plan(TRACE, method, WISH, budget)
    assert plan.footprint.total <= budget == plan.budget
    assert (plan.shape, plan.footprint) == (fitting[0].shape, fitting[0].footprint)


@settings(deadline=None, max_examples=40)
@given(st.integers(RUNTIME + 200_000, RUNTIME + 10**6), st.integers(0, 10**6))
def test_a_larger_budget_never_gives_a_worse_plan(budget, more):
    less, rest = (make_plan(TRACE, MestEM(), WISH, size) for size in (budget, budget + more))
    assert PREFERENCE.index(rest.shape) <= PREFERENCE.index(less.shape)


@pytest.mark.parametrize("method", [MestEM(), MestEMS(), RigL()])
def test_the_refusal_names_the_bytes_that_would_do(method):
    with pytest.raises(BudgetError) as caught:
        make_plan(TRACE, method, WISH, 5_000)
    text = str(caught.value)
    assert text.startswith("memory budget = 5 kB fits no plan; the smallest needs ")
    assert "modelled: density 0.025, micro-batch 1)" in text
    needed = int(re.search(r"needs (\d+) bytes", text)[1])
    plan = make_plan(TRACE, method, WISH, needed)
    assert plan.footprint.total == needed
    with pytest.raises(BudgetError):
        make_plan(TRACE, method, WISH, needed - 1)


def test_a_tighter_method_fits_where_a_looser_one_does_not():
    limit = min(plan.footprint.total for plan in candidates(TRACE, MestEM(), WISH))
    make_plan(TRACE, MestEM(), WISH, limit)
    for method in (MestEMS(), RigL()):
        with pytest.raises(BudgetError):
            make_plan(TRACE, method, WISH, limit)


def test_a_density_that_the_scheme_cannot_hold_is_refused():
    patterns = trace_model(resnet("pattern"), SMALL)
    with pytest.raises(InputError, match=r"density = 0\.5 is not allowed.*0\.4444"):
        make_plan(patterns, MestEM(), TrainingShape(0.5, "uniform", 8, 8), 10**9)


def test_a_plan_in_words():
    plan = make_plan(TRACE, MestEM(), WISH, 10**9)
    largest = max(plan.footprint.parts().values())
    assert plan.in_words() == (
        "Trains 20.0% of the sparse weights in batches of 16 taken 16 at a time; predicted peak "
        f"{plan.footprint.total / 10**6:.3g} MB of 1 GB, "
        f"{largest / plan.footprint.total:.0%} of it runtime."
    )
