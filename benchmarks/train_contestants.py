"""How the two sides of train_step.py are made, and what a step of either is."""

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.nn import sparsify

LEARNING_RATE = 0.01


class Step:
    """One training step of a model with its optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model.train()
        self.optimizer = optimizer

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Run a step; give the seconds of its parts."""
        start = time.perf_counter()
        loss = cross_entropy(self.model(images), labels)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = time.perf_counter()
        return {
            "forward": forward - start,
            "backward": backward - forward,
            "optimizer": end - backward,
        }


def ours(model: nn.Module, scheme: str, density: float) -> Step:
    """Make a dense model ours: the one place that says how."""
    sparsify(model, scheme, density)
    return Step(model, sgd(model))


def fused(model: nn.Module) -> Step:
    """Take a dense model as it is: with our fused norms and pooling."""
    return Step(model, sgd(model))


def dense(model: nn.Module) -> Step:
    """Take a model as dense torch trains it: its own convolutions, norms and ReLUs."""
    for module in model.modules():
        if hasattr(module, "fused"):
            module.fused = False
    return Step(model, sgd(model))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    parameters = model.parameters()
    return torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, fused=True)
