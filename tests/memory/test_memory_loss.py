"""The bytes of a loss are those of a plan: large vocabularies, and losses that need numbers."""

import pytest
import torch
from memory_cases import answer_of
from torch import nn

from mest_fed.memory import TrainingLoss, TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.sparsity import build_method
from mest_fed.system.peak_meter import can_measure

CODE = """
import json, torch
from torch import nn
from mest_fed.memory import TrainingLoss, TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.memory.step_bytes import measured_step
from mest_fed.sparsity import build_method
from mest_fed.training.tasks import NextToken

class Tokens(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 32)
        self.output = nn.Linear(32, vocabulary)
    def forward(self, tokens):
        return self.output(self.embedding(tokens))

torch.set_num_threads(1)
loss = TrainingLoss(NextToken().total_loss, (32,), torch.int64)
trace = trace_model(Tokens(20_000), (32,), torch.int64, loss)
shape = TrainingShape(1.0, "uniform", 8, 8)
setting = TrainingSetup(build_method("dense", 1.0), messages=False)
measured = measured_step(trace.at({}), (32,), shape, torch.int64, loss)
print(json.dumps([footprint(trace, setting, shape).total, measured]))
"""


@pytest.mark.soak
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_the_logits_of_a_large_vocabulary_are_planned_as_they_are_measured():
    predicted, measured = answer_of(CODE)
    logits = 4 * 8 * 32 * 20_000
    assert measured > 2 * logits  # the logits and their gradient alone
    assert measured * 0.95 <= predicted <= measured * 1.25


def total_of(loss, **target):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1000))
    trace = trace_model(model, (1, 4, 4), loss=TrainingLoss(loss, **target))
    setting = TrainingSetup(build_method("dense", 1.0), messages=False)
    return footprint(trace, setting, TrainingShape(1.0, "uniform", 64, 64)).total


def test_what_a_loss_makes_is_counted():
    def frugal(outputs, targets):
        return outputs[:, 0].sum()

    def wasteful(outputs, targets):
        return torch.stack([outputs.exp() for _ in range(8)]).sum()

    assert total_of(wasteful) > total_of(frugal) + 8 * 4 * 64 * 1000


def test_targets_are_counted_as_they_are():
    def loss(outputs, targets):
        return outputs.sum()

    scalar, large = total_of(loss), total_of(loss, target_shape=(1000,), target_dtype=torch.float64)
    assert large - scalar == pytest.approx(64 * (8 * 1000 - 8), rel=0.05)


def test_a_loss_that_needs_numbers_is_counted_as_a_softmax():
    def picky(outputs, targets):
        return outputs.sum() if outputs.max().item() > 0 else outputs.mean()

    with pytest.warns(RuntimeWarning, match=r"the loss cannot be traced .*item.*as a softmax"):
        found = total_of(picky)
    known = total_of(nn.functional.cross_entropy)
    assert known <= found <= 1.15 * known
