"""A model that cannot be traced without numbers is measured, and a warning says why."""

import pytest
from memory_cases import answer_of

from mest_fed.system.peak_meter import can_measure

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


#: Networks of 1-D convolutions and of attention, predicted and measured, kept and recomputed.
KINDS = """
import json
import torch
from torch import nn
from mest_fed.memory import MemoryOptions, TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.memory.step_bytes import measured_step
from mest_fed.nn import sparsify
from mest_fed.sparsity import build_method

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
        self.words, self.encoder = nn.Embedding(80, 64), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 80)

    def forward(self, x):
        return self.head(self.encoder(self.words(x)).mean(1))

torch.set_num_threads(1)
blocks = (nn.Sequential(nn.Conv1d(64, 64, 5, padding=2), nn.ReLU()) for _ in range(3))
end = nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 6)
line = nn.Sequential(nn.Conv1d(9, 64, 5, padding=2), *blocks, *end)
setup, found = TrainingSetup(build_method("static", 0.2), messages=False), []
for model, size, dtype in ((Tokens(), (64,), torch.int64), (line, (9, 256), torch.float32)):
    trace = trace_model(sparsify(model, "block", 0.2), size, dtype)
    counts = {n: len(m.slots) for n, m in model.named_modules() if hasattr(m, "slots")}
    for recompute in ("none", "segments"):
        shape = TrainingShape(0.2, "uniform", 64, 64, memory=MemoryOptions(recompute))
        measured = measured_step(trace.at(counts), size, shape, dtype)
        found.append(footprint(trace, setup, shape).total / measured)
print(json.dumps(found))
"""


@pytest.mark.soak
def test_predictions_for_attention_and_1d_convolutions_are_near_what_is_measured():
    ratios = answer_of(KINDS)
    assert len(ratios) == 4
    assert all(0.85 < ratio < 1.25 for ratio in ratios), ratios


def test_what_is_measured_is_near_what_would_be_traced():
    (odd, plain), said = answer_of(CODE)
    assert len(said) == 1
    assert said[0].startswith("3 (Odd) cannot be traced without numbers")
    assert said[0].endswith("its memory is measured instead")
    assert odd["runtime"] == odd["wire"] == 0
    assert (odd["values"], odd["index"]) == (plain["values"], plain["index"])
    assert sum(odd.values()) == pytest.approx(sum(plain.values()), rel=0.15)
