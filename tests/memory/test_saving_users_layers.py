"""Segments of a user's own making: whatever they draw, norm or read, gradients are right."""

import pytest
import torch
from saving_cases import LOSSLESS, backward, data, generator, resnet
from torch import nn
from torch.nn import functional

from mest_fed.memory import FORMATS, MemoryOptions


class Drops(nn.Module):
    """Dropout by a function: no module says that it draws."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return functional.dropout(self.conv(x).relu(), 0.5, self.training)


class Words(nn.Module):
    """Gives whole numbers, up to 4999, which no float of 16 bits tells apart."""

    def forward(self, x):
        return (x.abs() * 2000).long().clamp(0, 4999).flatten(1)[:, :8]


def convolution(*rest):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *rest)


def shared():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(convolution(), conv, nn.ReLU(), conv)


LAYERS = {
    "functional dropout": Drops,
    "random slopes": lambda: convolution(nn.RReLU()),
    "dropout of channels": lambda: convolution(nn.Dropout2d(0.5)),
    "whole numbers": lambda: (Words(), nn.Embedding(5000, 18)),
    "untracked norm": lambda: convolution(nn.BatchNorm2d(4, track_running_stats=False)),
    "cumulative norm": lambda: convolution(nn.BatchNorm2d(4, momentum=None)),
    "instance norm": lambda: convolution(
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    ),
    "layer norm": lambda: convolution(nn.LayerNorm((4, 6, 6))),
    "twice the same": shared,
    "norm of vectors": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 144), nn.BatchNorm1d(144), nn.ReLU(), nn.Dropout(0.5)
    ),
}


def model(layer):
    made = LAYERS[layer]()
    first = made if isinstance(made, tuple) else (made,)
    net = nn.Sequential(*first, nn.Flatten(), nn.Linear(144, 10)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 0.3, generator=generator())
    return net


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("saved", FORMATS)
def test_segments_are_run_again_as_they_ran(layer, saved):
    expected = backward(model(layer), MemoryOptions(), data())
    outcome = backward(model(layer), MemoryOptions("segments", saved), data())
    assert outcome.loss == expected.loss
    # Inexact formats: rounding, and signs that flip; see test_saving_inexact.
    assert outcome.away_from(expected) <= (1e-10 if saved in LOSSLESS else 0.13)
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=1e-10, atol=1e-10, msg=name)


class LetsNothingThrough(nn.Module):
    """Trains itself, and hands no gradient on."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x.detach())


def test_no_gradient_comes_from_where_none_goes():
    net = nn.Sequential(convolution(), LetsNothingThrough(), nn.Flatten(), nn.Linear(144, 10))
    outcome = backward(net.double(), MemoryOptions("segments"), data())
    assert outcome.gradients["0.0.weight"] is None
    assert outcome.gradients["1.conv.weight"].any()


class HoldsStatistics(nn.Module):
    """A model whose norms were put into evaluation by its owner, as for fine-tuning."""

    def __init__(self, part):
        super().__init__()
        self.net = resnet("block")
        self.part = part
        with torch.no_grad():
            for name, buffer in self.net.named_buffers():
                if name.endswith(("mean", "var")):
                    buffer.uniform_(0.5, 1.5, generator=generator(4))

    def train(self, mode=True):
        super().train(mode)
        for module in self.net.get_submodule(self.part).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("part", ["", "norm1", "stage2.0.norm1", "stage3.0.shortcut"])
@pytest.mark.parametrize("recompute", ["norms", "segments"])
def test_norms_in_evaluation_keep_to_their_statistics(part, recompute):
    expected = backward(HoldsStatistics(part).double(), MemoryOptions(), data())
    outcome = backward(HoldsStatistics(part).double(), MemoryOptions(recompute, "mask"), data())
    assert outcome.loss == pytest.approx(expected.loss, rel=1e-12)
    assert outcome.away_from(expected) <= 1e-10
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=1e-10, atol=1e-10, msg=name)
