"""Plans for a real model: what is planned by halving is what trying everything would give."""

from dataclasses import replace

import pytest
from memory_cases import SMALL, resnet
from planner_cases import everything

from mest_fed.errors import BudgetError, InputError
from mest_fed.memory import (
    MemoryOptions,
    PlanLimits,
    Planner,
    TrainingSetup,
    TrainingShape,
    footprint,
    trace_model,
)
from mest_fed.memory.planner import UNCERTAINTY, needed
from mest_fed.sparsity import MestEM, MestEMS, Method, RigL

SHAPE = TrainingShape(0.2, "uniform", 4, 4)
FIXED = frozenset({"momentum", "frozen", "density"})
FEW = PlanLimits(SHAPE, least_micro_batch=2, segments=4, fixed=FIXED)


@pytest.fixture(scope="module", params=["group", "batch"])
def trace(request):
    return trace_model(resnet("block", norm=request.param), SMALL)


def test_every_budget_gives_the_first_plan_that_fits(trace):
    setting = TrainingSetup(MestEM())
    limits = replace(FEW, fixed=FEW.fixed | {"release_gradients"})
    planner = Planner(trace, setting, limits)
    totals = [
        (footprint(trace, setting, shape).total, shape)
        for _, shape in everything(limits.knobs(), SHAPE)
    ]
    assert len(totals) == 2 * 3 * 3
    for total in sorted({total for total, _ in totals}):
        for budget in (needed(total), needed(total) - 1):
            room = int(budget / (1 + UNCERTAINTY))
            expected = next((shape for size, shape in totals if size <= room), None)
            if expected is None:
                with pytest.raises(BudgetError):
                    planner.plan(budget)
            else:
                assert planner.plan(budget).shape == expected


@pytest.mark.soak
@pytest.mark.parametrize("method", [MestEM(), RigL()])
def test_the_refusal_names_a_budget_that_does(trace, method):
    planner = Planner(trace, TrainingSetup(method), FEW)
    least = planner.smallest()
    assert planner.plan(least.budget).footprint.total == least.footprint.total
    with pytest.raises(BudgetError, match=f"needs {least.budget} bytes"):
        planner.plan(least.budget - 1)


def test_a_tighter_method_fits_where_a_looser_one_does_not(trace):
    budget = Planner(trace, TrainingSetup(MestEM()), FEW).smallest().budget
    for method in (MestEMS(), RigL()):
        with pytest.raises(BudgetError):
            Planner(trace, TrainingSetup(method), FEW).plan(budget)


def test_a_dense_model_has_no_density_to_give():
    trace = trace_model(resnet(), SMALL)
    least = Planner(
        trace, TrainingSetup(Method()), replace(FEW, sparse=False, fixed=frozenset())
    ).smallest()
    assert (least.density, least.micro_batch) == (0.2, 2)
    assert not least.shape.momentum


def test_a_density_that_the_scheme_cannot_hold_is_refused():
    patterns = Planner(trace_model(resnet("pattern"), SMALL), TrainingSetup(MestEM()), FEW)
    limits = replace(FEW, shape=replace(SHAPE, density=0.5))
    with pytest.raises(InputError, match=r"density = 0\.5 is not allowed.*0\.4444"):
        Planner(patterns.trace, patterns.setting, limits).plan(10**9)
    assert patterns.plan(10**9).density == 0.2


def test_requested_savings_are_kept(trace):
    memory = MemoryOptions("segments", "bf16", release_gradients=True, frozen=1)
    limits = PlanLimits(replace(SHAPE, memory=memory), segments=4)
    found = Planner(trace, TrainingSetup(MestEM()), limits).smallest()
    assert (found.memory.recompute, found.memory.saved) == ("segments", "bf16")
    assert found.memory.frozen == 2
