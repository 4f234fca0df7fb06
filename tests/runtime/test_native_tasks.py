"""Steps of other tasks than classification, and of limits on a step, in the native runtime."""

import numpy as np
import pytest
import torch
from torch import nn

from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tasks import MultiLabel, Regression

RATE, EXAMPLES = 0.1, 5


class View(nn.Module):
    def forward(self, x):
        return x.view(-1, 2, 3)


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), View())


@pytest.mark.parametrize("task", [Regression(), Regression("huber"), MultiLabel()])
@pytest.mark.parametrize(("clip_norm", "proximal"), [(0.0, 0.0), (0.05, 0.5)])
@pytest.mark.parametrize("group", [2, 5])
def test_steps_equal_the_reference(task, clip_norm, proximal, group):
    settings = OptimizerSettings(clip_norm=clip_norm, proximal=proximal, momentum=0.9)
    programs = StepPrograms(model_of(), ((4,), torch.float32), task, settings)
    values = programs.captured(group).arrays()
    values |= {f"{name}:reference": it for name, it in values.items() if proximal}
    step = CompiledStep(programs(group), 2, resize=programs)
    for name, array in values.items():
        step.load(name, array)
    exact = Reference(programs(EXAMPLES), values, "float64")
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.normal(size=(EXAMPLES, 4)).astype(np.float32)
        targets = rng.normal(size=(EXAMPLES, 2, 3)).astype(np.float32)
        loss = step.step(x, targets, RATE)
        given = {"input": x, "targets": targets.reshape(EXAMPLES, 6)}
        exact.step({**given, "share": [1 / EXAMPLES], "rates": [RATE]})
        assert loss == pytest.approx(float(exact.read("loss")), rel=1e-5)
        for name, array in step.arrays.items():
            np.testing.assert_allclose(array, exact.read(name), rtol=1e-4, atol=1e-5)
    assert set(step.gradients) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert step.outputs.shape == (EXAMPLES, 2, 3)


def test_negative_numbers_are_targets_too():
    programs = StepPrograms(model_of(), ((4,), torch.float32), Regression(), OptimizerSettings())
    step = CompiledStep(programs(EXAMPLES))
    for name, array in programs.captured(EXAMPLES).arrays().items():
        step.load(name, array)
    step.step(np.ones((EXAMPLES, 4)), np.full((EXAMPLES, 6), -1.0), RATE)
    assert step.gradients["0.bias"].any()
