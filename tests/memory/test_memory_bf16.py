"""Plans whose compiled steps store planes as bfloat16."""

from dataclasses import replace

import pytest
import torch
from memory_cases import SMALL, resnet, tiny
from planner_cases import everything

from mest_fed.errors import BudgetError
from mest_fed.memory import (
    MemoryOptions,
    PlanLimits,
    Planner,
    TrainingSetup,
    TrainingShape,
    footprint,
    trace_model,
)
from mest_fed.memory.footprint import is_compiled
from mest_fed.memory.planner import UNCERTAINTY, needed
from mest_fed.runtime import native_table
from mest_fed.sparsity import Static
from mest_fed.training import CLASSIFICATION, OptimizerSettings
from mest_fed.training.step_compiler import StepCompiler

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")

SHAPE = TrainingShape(0.25, "uniform", 16, 16)
FIXED = frozenset({"momentum", "frozen", "density", "release_gradients"})
#: The format alone is the planner's to choose.
ALONE = FIXED | {"micro_batch", "recompute"}


def setup(example=SMALL):
    compiler = StepCompiler((example, torch.float32), CLASSIFICATION, OptimizerSettings(0.1))
    return TrainingSetup(Static(), messages=False, compiler=compiler)


def saving(saved, shape=SHAPE):
    return replace(shape, memory=MemoryOptions(saved=saved))


def limits(fixed, shape=SHAPE, **how):
    return PlanLimits(shape, least_micro_batch=8, segments=4, fixed=fixed, compiled=True, **how)


@pytest.fixture(scope="module", params=["group", "batch"])
def trace(request):
    return trace_model(resnet("block", norm=request.param), SMALL)


def test_the_bytes_of_a_plan_are_fewer(trace):
    setting = setup()
    narrow, wide = (footprint(trace, setting, saving(it)) for it in ("bf16", "fp32"))
    assert narrow.activations < 0.7 * wide.activations
    for part in ("values", "gradients", "optimizer", "index", "batch"):
        assert getattr(narrow, part) == getattr(wide, part), part
    assert narrow.total < wide.total


def test_it_is_planned_unasked_where_programs_train(trace):
    planner = Planner(trace, setup(), limits(ALONE))
    totals = {it: planner._total(saving(it)) for it in ("fp32", "bf16")}
    assert planner.plan(needed(totals["fp32"])).memory.saved == "fp32"
    plan = planner.plan(needed(totals["fp32"]) - 1)
    assert (plan.memory.saved, plan.footprint.total) == ("bf16", totals["bf16"])
    assert is_compiled(trace, planner.setting, plan.shape)


@pytest.mark.soak
def test_every_budget_gives_the_first_plan_that_fits(trace):
    setting, few = setup(), limits(FIXED)
    planner = Planner(trace, setting, few)
    shapes = [
        shape
        for _, shape in everything(few.knobs(), SHAPE)
        if shape.memory.saved != "bf16" or is_compiled(trace, setting, shape)
    ]
    assert len(shapes) == 2 * (3 * 4 - 1)  # all but segments with bf16
    totals = [(footprint(trace, setting, shape).total, shape) for shape in shapes]
    for total in sorted({total for total, _ in totals}):
        for budget in (needed(total), needed(total) - 1):
            room = int(budget / (1 + UNCERTAINTY))
            expected = next((shape for size, shape in totals if size <= room), None)
            if expected is None:
                with pytest.raises(BudgetError):
                    planner.plan(budget)
            else:
                assert planner.plan(budget).shape == expected
    assert planner.smallest().footprint.total == min(total for total, _ in totals)
    assert {plan.shape for plan in planner.frontier()} <= set(shapes)


def test_a_model_without_planes_is_not_planned_so():
    example = (1, 6, 6)
    trace, setting = trace_model(tiny(), example), setup(example)
    planner = Planner(trace, setting, limits(ALONE))
    assert is_compiled(trace, setting, saving("fp32"))
    assert not is_compiled(trace, setting, saving("bf16"))
    by_torch = TrainingSetup(Static(), messages=False)
    assert footprint(trace, setting, saving("bf16")) == footprint(trace, by_torch, saving("bf16"))
    assert {plan.memory.saved for plan in planner.frontier()} == {"fp32", "fp16", "int8"}


def test_what_is_requested_is_kept_whoever_trains():
    trace, shape = trace_model(tiny(), (1, 6, 6)), saving("bf16")
    planner = Planner(trace, setup((1, 6, 6)), limits(ALONE, shape))
    assert planner.plan(10**9).memory.saved == "bf16"
