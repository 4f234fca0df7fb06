"""What training brings into a process: not torch's compiler, not sympy (66 MB for nothing)."""

import subprocess
import sys

import pytest

TRAIN = """
import sys
import numpy as np
import torch
from mest_fed.memory import FORMATS, RECOMPUTE, MemoryOptions, memory_saving
from mest_fed.nn import Mutator, Sparsity, build_model, build_shell, read_state, write_state
from mest_fed.nn.optimizers import SGD
from mest_fed.sparsity import Bounds, MestEM

torch.set_num_threads(1)
images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
for norm in ("batch", "group"):
    options = {"width": 0.5, "norm": norm}
    model = build_model("resnet8", (1, 8, 8), 10, generator=torch.Generator().manual_seed(0),
                        sparsity=Sparsity("block", 0.2), **options)
    shell = build_shell("resnet8", (1, 8, 8), 10, scheme="block", **options)
    write_state(shell, read_state(model))
    for net in (model, shell):
        net.train()
        for recompute in RECOMPUTE:
            for saved in FORMATS:
                memory = MemoryOptions(recompute, saved, release_gradients=saved == "int8")
                optimizer = SGD(net.parameters(), 0.1, momentum=0.9,
                                release_gradients=memory.release_gradients)
                with memory_saving(net, memory) as forward:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(forward(images), labels).backward()
                    optimizer.step()
                optimizer.close()
        mutator = Mutator(net, MestEM(), optimizer)
        mutator.mutate(Bounds(floor=0.7), lambda name: np.random.default_rng(1))
class Users(torch.nn.Sequential):  # which is recomputed whole
    def forward(self, x):
        return super().forward(x).cumsum(0)

nn = torch.nn
users = Users(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.1))
net = nn.Sequential(users, nn.Linear(64, 10)).train()
for recompute in RECOMPUTE:
    for autocast in (True, False):
        with memory_saving(net, MemoryOptions(recompute, "int8")) as forward:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
heavy = [name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules]
print("heavy:", heavy)
"""


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


@pytest.mark.soak
def test_training_brings_in_neither_the_compiler_nor_sympy():
    assert run(TRAIN) == "heavy: []"


@pytest.mark.soak
@pytest.mark.slow
def test_torch_s_own_optimizer_would():
    """Else the test above asks for nothing."""
    code = "import sys, torch; torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)\n"
    code += "print([name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    assert run(code) == "['sympy', 'torch._dynamo']"
