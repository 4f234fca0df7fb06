"""A tiny model whose bytes can be counted by hand, and a small ResNet."""

import json
import os
import subprocess
import sys

import torch
from torch import nn

from mest_fed.nn import build_model, sparsify
from mest_fed.system.allocator import ALLOCATOR_ENVIRONMENT

TINY = (1, 6, 6)
SMALL = (1, 8, 8)


class NoOverhead:
    """Operators without workspace: theirs is calibrated, not counted."""

    kept = 0

    def __init__(self, threads=1):
        self.threads = threads

    def while_running(self, name, given, made):
        return 0


def answer_of(code, *arguments):
    """Run code in a process of its own, where memory can be measured; return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | ALLOCATOR_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny():
    """Return a stem, one sparsifiable convolution of 72 weights, and a classifier."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator())
    return model


def resnet(scheme=None, density=0.25, distribution="uniform", norm="group"):
    model = build_model("resnet8", SMALL, 10, generator=generator(), width=0.5, norm=norm)
    return model if scheme is None else sparsify(model, scheme, density, distribution)
