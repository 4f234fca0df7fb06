"""The bound that spares traces of torch is below every footprint."""

import itertools

import pytest
import torch

from mest_fed.memory import TrainingSetup, TrainingShape, trace_model
from mest_fed.memory.footprint import at_least, footprint
from mest_fed.memory.knobs import PlanLimits
from mest_fed.nn import build_model, sparsify
from mest_fed.rng import torch_generator
from mest_fed.runtime import native_table
from mest_fed.sparsity import Static
from mest_fed.training import CLASSIFICATION, OptimizerSettings
from mest_fed.training.step_compiler import StepCompiler

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")
IMAGE, NAMES = (3, 32, 32), ("recompute", "saved", "micro_batch", "density")


@pytest.mark.parametrize("name", ["mlp", "cnn2"])
def test_no_footprint_is_below_its_bound(name):
    model = build_model(name, IMAGE, 10, generator=torch_generator(0, "bounds"))
    trace = trace_model(sparsify(model, "block", 0.1), IMAGE)
    compiler = StepCompiler((IMAGE, torch.float32), CLASSIFICATION, OptimizerSettings(0.1))
    setting = TrainingSetup(Static(), compiler=compiler)
    whole = TrainingShape(0.1, "uniform", 64, 64)
    limits = PlanLimits.of(trace, whole, frozenset(), compiled=True)
    knobs = [knob for knob in limits.knobs() if knob.name in NAMES]
    tried = 0
    for steps in itertools.product(*({0, len(knob.steps) - 1} for knob in knobs)):
        shape = whole
        for knob, step in zip(knobs, steps, strict=True):
            shape = knob.pull(shape, knob.steps[step])
        if (setting, shape) not in trace.known:
            assert at_least(trace, setting, shape) <= footprint(trace, setting, shape).total
            tried += 1
    assert tried > 3
