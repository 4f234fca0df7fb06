"""Models of each family: the predicted peak of a step against the measured one."""

import pytest
from memory_cases import answer_of

from mest_fed.system.peak_meter import can_measure

pytestmark = pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")

CODE = """
import json, warnings
import torch
from mest_fed.memory import MemoryOptions, TrainingSetup, TrainingShape, trace_model
from mest_fed.memory.footprint import footprint, peak_granules
from mest_fed.memory.step_bytes import measured_step
from mest_fed.nn import sparsifiable
from mest_fed.nn.models import Architecture, Sparsity
from mest_fed.sparsity import build_method

warnings.simplefilter("ignore")
torch.set_num_threads(1)
CASES = {
    "resnet50": (Architecture("resnet50", (3, 16, 16), 10, width=0.5), torch.float32),
    "mobilenetv2": (Architecture("mobilenetv2", (3, 16, 16), 10), torch.float32),
    "dscnn": (Architecture("dscnn", (1, 49, 10), 12, width=2.0), torch.float32),
    "har1d": (Architecture("har1d", (9, 128), 6, width=2.0), torch.float32),
    "transformer": (Architecture("transformer", (128,), 10, num_tokens=100), torch.int64),
    "lstm": (Architecture("lstm", (32,), 10, num_tokens=100), torch.int64),
}
CASES["transformer, segments"] = CASES["transformer"]
found = {}
for name, (architecture, dtype) in CASES.items():
    sparse = bool(sparsifiable(architecture.shell()))
    shell = architecture.shell(Sparsity("block") if sparse else None)
    trace = trace_model(shell, architecture.input_shape, dtype)
    setting = TrainingSetup(build_method("static" if sparse else "dense", 0.1), messages=False)
    memory = MemoryOptions("segments" if "segments" in name else "none")
    shape = TrainingShape(0.1 if sparse else 1.0, "uniform", 32, 32, memory=memory)
    model = trace.at(peak_granules(trace, setting.method, shape))
    measured = measured_step(model, architecture.input_shape, shape, dtype)
    found[name] = footprint(trace, setting, shape).total / measured
print(json.dumps(found))
"""


@pytest.mark.soak
def test_prediction_is_near_what_is_measured():
    ratios = answer_of(CODE)
    print(ratios)
    for name, ratio in ratios.items():
        assert 0.92 < ratio < 1.19, name
