"""Side by side under one limit of the operating system: dense torch dies, ours ends its epoch."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT
from mest_fed.system.limits import limit_memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone"),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="the limit suits torch's CPU build; CUDA's is larger"
    ),
]

LIMIT = 320 * 10**6
#: Each waits for a line, so that the limit stands before it imports torch, then trains an epoch of
#: two batches of 64 images on MEST's ResNet-32.
PROLOGUE = """
input()
import torch
from torch.nn.functional import cross_entropy
from mest_fed.nn import Sparsity, build_model
from mest_fed.rng import torch_generator
torch.set_num_threads(1)
generator = torch_generator(0, "limit")
images = torch.randn(128, 3, 32, 32, generator=generator)
labels = torch.randint(10, (128,), generator=generator)
options = {"generator": generator, "width": 2.0}
"""
DENSE = (
    PROLOGUE
    + """
model = build_model("resnet32", (3, 32, 32), 10, **options)
for module in model.modules():
    if hasattr(module, "fused"):
        module.fused = False
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for part in (slice(0, 64), slice(64, 128)):
    optimizer.zero_grad()
    cross_entropy(model(images[part]), labels[part]).backward()
    optimizer.step()
print("epoch done")
"""
)
OURS = (
    PROLOGUE
    + """
from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.nn.optimizers import SGD
model = build_model("resnet32", (3, 32, 32), 10, sparsity=Sparsity("block", 0.1), **options)
memory = MemoryOptions("segments", "int8", release_gradients=True)
optimizer = SGD(model.parameters(), 0.1, momentum=0.9, release_gradients=True)
with memory_saving(model, memory) as forward:
    for part in (slice(0, 64), slice(64, 128)):
        optimizer.zero_grad()
        cross_entropy(forward(images[part]), labels[part]).backward()
        optimizer.step()
print("epoch done")
"""
)


@pytest.fixture
def under_the_limit():
    """Return a function that runs code under the limit: (exit status, output)."""
    started = []

    def run(code):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | ALLOCATOR_ENVIRONMENT,
            text=True,
        )
        started.append(process)
        with limit_memory(LIMIT, pid=process.pid) as limit:
            if limit.cgroup_limit is None:
                pytest.skip(f"no memory control group can be made here; {limit.kind} would hold it")
            output, errors = process.communicate("\n", timeout=120)
        return process.returncode, output or errors

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=20)


@pytest.mark.soak
def test_dense_dies_where_ours_ends_its_epoch(under_the_limit):
    assert under_the_limit(DENSE) == (-signal.SIGKILL, "")
    assert under_the_limit(OURS) == (0, "epoch done\n")
