"""Small steps, their weights and examples, for the programs in C."""

import numpy as np
import torch
from torch import nn

from mest_fed.cli.planning.request import read_request
from mest_fed.cli.programs.report import ProgramReport
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.build import Builder
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.passes.groups import with_groups
from mest_fed.runtime.updates import SGD, with_updates
from mest_fed.training.step_program import StepPrograms
from mest_fed.training.tasks import Regression


def linear_program():
    """A linear classifier of 3 features and 2 classes, groups of 4 examples, SGD with momentum."""
    builder = Builder()
    inputs = {
        "x": builder.buffer("input", (4, 3), role="input"),
        "w": builder.buffer("w", (2, 3), role="parameter"),
    }
    (logits,) = builder.operator("linear", inputs, {}, "logits")
    builder.role(logits, "output")
    forward = builder.end_phase(0).program()
    step = with_updates(with_gradients(with_loss(forward, "logits")), SGD(momentum=0.9))
    return with_groups(step).checked()


def linear_weights():
    return {"w": np.array([[1, 0, -1], [0.5, 2, 0]], np.float32)}


def mlp_programs():
    """A regression: its programs by the size of a group."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    settings = OptimizerSettings(momentum=0.9, weight_decay=0.01)
    return StepPrograms(model, ((4,), torch.float32), Regression("huber"), settings)


def mlp_program():
    return mlp_programs()(4)


def sparse_program():
    """A small convolution network with masks, groups of 2 examples."""
    options = {"model.name": "resnet8", "model.width": 0.25, "training.batch_size": 4}
    return ProgramReport.of(read_request((None, None), options, (), ("1x8x8", 10)), 2).program
