"""A model that cannot be traced without numbers is measured, and a warning says why."""

import json
import os
import subprocess
import sys

import pytest

from mest_fed.memory.meter import ALLOCATOR_ENVIRONMENT, can_measure

pytestmark = pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")

#: One network with a layer that asks for a number, and the same without it.
CODE = """
import json, warnings
import torch
from torch import nn
from mest_fed.memory import TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.nn import sparsify
from mest_fed.sparsity import build_method

class Odd(nn.Module):
    def forward(self, x):
        return x if x.abs().max().item() >= 0 else -x

torch.set_num_threads(1)
layers = [
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), Odd(), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
]
odd = sparsify(nn.Sequential(*layers), "block", 0.1)
plain = nn.Sequential(*(layer for layer in odd if not isinstance(layer, Odd)))
setting = TrainingSetup(build_method("static", 0.1), messages=False)
shape = TrainingShape(0.1, "uniform", 32, 32)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = [footprint(trace_model(m, (3, 32, 32)), setting, shape).parts() for m in (odd, plain)]
print(json.dumps([found, [str(warning.message) for warning in said]]))
"""


def test_what_is_measured_is_near_what_would_be_traced():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | ALLOCATOR_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    (odd, plain), said = json.loads(done.stdout)
    assert len(said) == 1
    assert said[0].startswith("3 (Odd) cannot be traced without numbers")
    assert said[0].endswith("its memory is measured instead")
    assert odd["runtime"] == odd["wire"] == 0
    assert (odd["values"], odd["index"]) == (plain["values"], plain["index"])
    assert sum(odd.values()) == pytest.approx(sum(plain.values()), rel=0.15)
