"""Which modules are programs, and the one line that says why another is none."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mest_fed.errors import InputError
from mest_fed.nn import sparsify
from mest_fed.nn.capture import INPUT, capture
from mest_fed.nn.dense import Conv2d, ReLUMaxPool2d
from mest_fed.nn.norms import GroupNorm
from mest_fed.runtime.reference import Reference

IMAGES = (2, 4, 6, 6)


def names_of(captured):
    return [it.name for it in captured.program.operators]


class Called(nn.Module):
    """A module whose forward is a function of a tensor."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


#: A module, the shape of its input.
TAKEN = {
    "convolution": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGES),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGES),
    "ours": (Conv2d(4, 6, (1, 3), (2, 1), (0, 1)), IMAGES),
    "series": (nn.Conv1d(4, 6, 3, 2, padding=1), (2, 4, 9)),
    "tokens": (nn.Linear(4, 3), (2, 5, 4)),
    "pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGES),
    "pool-series": (nn.MaxPool1d(2), (2, 4, 9)),
    "relu-pool": (ReLUMaxPool2d(), IMAGES),
    "norm": (nn.GroupNorm(2, 4), IMAGES),
    "batch-norm": (nn.BatchNorm1d(4), (3, 4)),
    "residual": (Called(lambda x, norm: norm(x, residual=x, relu=True), GroupNorm(2, 4)), IMAGES),
    "functions": (Called(lambda x: F.hardswish(F.silu(F.relu6(torch.add(x, x))))), IMAGES),
    "methods": (Called(lambda x: x.relu().mul(x).mean((2, 3), keepdim=True).flatten(1)), IMAGES),
    "views": (Called(lambda x: torch.relu(x.view(x.size(0), -1).unsqueeze(1)).squeeze(1)), IMAGES),
    "shape": (Called(lambda x: torch.relu(x.reshape(x.shape[0] * x.shape[1], -1))), IMAGES),
    "identity": (nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.ReLU()), IMAGES),
    "contiguous": (Called(lambda x, linear: linear(x.contiguous()), nn.Linear(6, 2)), IMAGES),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_module_is_a_program(name):
    module, shape = TAKEN[name]
    module = module.double() if list(module.parameters()) else module
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    captured = capture(module.float(), shape)
    run = Reference(captured.program, captured.arrays(), "float64")
    run.step({INPUT: x.numpy()})
    expected = module.double()(x).detach().numpy()
    np.testing.assert_allclose(run.read(captured.output), expected, rtol=1e-12, atol=1e-12)


class Second(nn.Module):
    def forward(self, x, mask):
        return x + mask


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x):
        return torch.relu(x), x


class OwnConv(nn.Conv2d):
    pass


#: A module, and what is said of it.
REFUSED = {
    "recurrent": (nn.Sequential(nn.GRU(6, 3)), "module '0', a GRU, has no operator"),
    "attention": (nn.MultiheadAttention(6, 2), "module '0', a MultiheadAttention, has no operator"),
    "dilation": (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), r"0: a Conv2d with dilation"),
    "mode": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode = 'reflect'"),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), "padding = 'same' has no operator"),
    "channels": (nn.Conv2d(3, 4, 3), "x has shape .*; allowed: 3 channels"),
    "kernel": (nn.Conv2d(4, 4, 9), "kernel has value 9; allowed: at most 6"),
    "affine": (nn.GroupNorm(2, 4, affine=False), "no weight or no bias has no operator"),
    "statistics": (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
    "average": (nn.BatchNorm2d(4, momentum=None), "momentum = None"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "indices or a dilation"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "a setting of its own"),
    "tanh": (nn.Tanh(), "a Tanh, has no operator"),
    "approximate": (nn.GELU("tanh"), "an approximation has no operator"),
    "function": (Called(lambda x: torch.cumsum(x, 1)), "function 'cumsum', has no operator"),
    "method": (Called(lambda x: x.cumsum(1)), "method 'cumsum', has no operator"),
    "number": (Called(lambda x: x + 1), "sum of a tensor and a number has no operator"),
    "shapes": (Called(lambda x: x + x.mean((2, 3))), "add: add: b has shape"),
    "mean": (Called(lambda x: x.mean(0)), "the mean over dim = 0"),
    "part": (Called(lambda x: torch.relu(x[:1])), "a part of a tensor has no operator"),
    "view": (Called(lambda x: x.view(5, -1)), "invalid for input of size"),
    "attribute": (Called(lambda x: x + x.T), "attribute 'T' of a tensor is not known"),
    "keyword": (Called(lambda x: F.relu(x, again=True)), "again"),
    "branch": (Branching(), "Branching cannot be traced"),
    "second": (Second(), "a second input, 'mask'"),
    "two": (Two(), "does not return one tensor"),
    "nothing": (nn.Identity(), "does not return one tensor"),
    "subclass": (OwnConv(4, 4, 3), "has no operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_operator_is_named_in_one_line(name):
    module, says = REFUSED[name]
    with pytest.raises(InputError, match=says) as caught:
        capture(module, IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["pattern", "channel"])
def test_schemes_without_operators_are_named(scheme):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    sparsify(model, scheme, 0.4)
    with pytest.raises(InputError, match=f"^1: a SparseConv2d with the scheme {scheme} has no op"):
        capture(model, IMAGES)


def test_a_shell_on_the_meta_device_is_a_program_too():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    assert names_of(capture(module, IMAGES)) == ["conv2d", "relu"]


def test_names_are_those_of_a_state_dict():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    sparse = sparsify(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)), "block", 0.5
    )
    shared = capture(model, (2, 6))
    assert set(shared.tensors) == {"0.weight", "0.bias", "2.bias"}
    captured = capture(sparse, (2, 6))
    assert {"1.values", "1.slots", "1.bias"} <= set(captured.tensors)
    assert "1.slots" not in captured.trained
    numbers = captured.program.numbers
    buffers = captured.program.buffers
    assert buffers[numbers["1.slots"]].dtype == "int32"
    assert buffers[numbers["1.values"]].shape == tuple(sparse[1].values.shape)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    before = {name: it.clone() for name, it in model.state_dict().items()}
    random = torch.random.get_rng_state()
    captured = capture(model, IMAGES)
    captured.arrays()["0.weight"][:] = 7
    assert names_of(captured) == ["batch_norm", "dropout"]
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not model.training
