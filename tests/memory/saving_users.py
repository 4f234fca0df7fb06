"""Modules as users write them: not functions of rows, with state, in place, of many tensors."""

import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from saving_cases import cnn2, generator, resnet, users_own
from torch import nn
from torch.nn import functional

from mest_fed.nn.models.resnet import ResidualBlock


def of(forward, **parts):
    """Return a module that computes ``forward(self, *args, **kwargs)`` with such attributes."""

    class Users(nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part() if callable(part) and name != "call" else part)

    Users.forward = forward
    return Users()


def linear(*sizes):
    return lambda: nn.Linear(*sizes)


class Counts(nn.Module):
    """Scales by how often it ran; counts in every way that comes to mind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("rebound", torch.zeros(()))
        self.alias = self.in_place
        self.number, self.seen, self.times = 0, [], Counter()
        self.note, self.own, self.meter = SimpleNamespace(n=0), Noted(), Meter()

    def forward(self, x):
        self.alias.add_(1)
        self.rebound = self.rebound + 1
        self.number += 1
        self.seen.append(self.number)
        self.times["runs"] += 1
        self.note.n += 1
        self.own.values.append(1)
        self.meter.sum += 0.5
        if not hasattr(self, "first"):
            self.first = True
            x = x * 2
        counts = (self.number, len(self.seen), self.times["runs"], self.note.n)
        factor = (
            self.meter.sum + self.in_place + 2 * self.rebound + sum(counts) + len(self.own.values)
        )
        return self.linear(x).tanh() * factor


class Meter:
    def __init__(self):
        self.sum = 0.0

    def __repr__(self):
        return f"Meter({self.sum})"


@dataclass
class Noted:
    values: list = field(default_factory=list)


class Draws(nn.Module):
    """Draws from each generator that there is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.torch, self.numpy = generator(7), np.random.default_rng(7)

    def forward(self, x):
        factor = random.random() + np.random.rand() + self.numpy.random()  # noqa: NPY002
        noise = torch.rand(x.shape, generator=self.torch) + torch.rand(x.shape)
        return functional.dropout(self.linear(x) * noise.to(x.dtype) * factor, 0.4)


class RemembersState(nn.Module):
    """A cell whose state goes from call to call, with its gradient."""

    def __init__(self):
        super().__init__()
        self.linear, self.state = nn.Linear(12, 6), None

    def forward(self, x):
        state = torch.zeros_like(x) if self.state is None else self.state
        self.state = self.linear(torch.cat((x, state), 1)).tanh()
        return self.state


class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x) - x.mean(0)


def hooked(hook):
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3))
    net[0][0].register_forward_hook(hook)
    return net


def with_its_norm_in_evaluation():
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), nn.Linear(6, 3))

    def train(mode=True):
        nn.Module.train(net, mode)
        net[0][1].eval()
        return net

    net.train = train
    return net


def frozen_in_part():
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 3))
    net[0][0].requires_grad_(False)
    return net


def twice(part):
    return nn.Sequential(part, nn.Tanh(), part)


def in_two_containers():
    part = nn.Linear(6, 6)
    return of(
        lambda self, x: self.b(self.a(x)),
        a=lambda: nn.Sequential(part, nn.Tanh()),
        b=lambda: nn.Sequential(nn.Tanh(), part),
    )


def tied():
    net = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 3))
    net[0][2].weight = net[0][0].weight
    return net


def stored(self, x):
    self.kept = self.linear(x).tanh()
    return self.kept * 2


class AuxiliaryLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(of(stored, linear=linear(6, 6)), nn.Linear(6, 3))

    def forward(self, x):
        return self.body(x) + self.body[0].kept.square().mean()


class Masked(nn.Module):
    """Blocks in a list that take a second tensor, a keyword and a tuple, and give several."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2)
            self.linear = nn.Linear(6, 6)

        def forward(self, x, pair, *, mask=None, factor=1):
            y, weights = self.attention(x, x, x, attn_mask=mask)
            return {"y": self.linear(y) * factor + pair[0], "all": (weights, pair[1] * 2)}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x, mask=None):
        pair = (x, x * 2)
        for block in self.blocks:
            found = block(x, pair, mask=mask, factor=3)
            x, pair = found["y"], (found["all"][0].mean(), found["all"][1])
        return x + pair[0] + pair[1]


class InBlocks(nn.Module):
    """Names no segments, and has no container."""

    def __init__(self):
        super().__init__()
        self.first = of(lambda self, x: self.l(x).tanh(), l=linear(6, 6))
        self.second = of(lambda self, x: self.l(x).cumsum(0), l=linear(6, 6))

    def forward(self, x):
        return self.second(self.first(x))


class DeclaresItsOwn(nn.Module):
    segments = {"centred": ("linear",), "last": ()}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.linear, self.end, self.calls = nn.Linear(6, 6), nn.Linear(6, 3), 0
        self.register_buffer("total", torch.zeros(()))

    def centred(self, x):
        self.calls += 1
        self.total += 1
        y = self.linear(x).tanh()
        return (y - y.mean(0)) * self.calls * self.total

    def last(self, x):
        return self.end(x)

    def forward(self, x):
        return self.last(self.centred(x))


def seq(*parts):
    """Return a segment of these parts, and a last layer."""
    return nn.Sequential(nn.Sequential(*parts), of(lambda self, x: self.p * x, p=scale))


def scale():
    return nn.Parameter(torch.full((), 1.5))


class Cell(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=batch_first)

    def forward(self, x):
        return self.lstm(x)[0]


def attends_over_the_batch(self, x):
    q, k, v = self.l(x).chunk(3, -1)
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def changed(name, part):
    """Return a ResNet of ours in whose first block a user has put something of her own."""

    def build():
        net = resnet(None, "batch")
        setattr(net.stage1[0], name, part(net.stage1[0]))
        return net

    return build


class Centred(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), None)


class CentredBlock(ResidualBlock):
    def forward(self, x):
        return super().forward(x) - x.mean(0)


def hooked_block():
    net = resnet(None, "batch")
    net.stage2[0].norm1.register_forward_hook(lambda _, x, y: y * 2)
    return net


def conv(**options):
    return lambda _: nn.Conv2d(4, 4, 3, 1, 1, **{"bias": False, **options})


#: Our residual block computes its gradients by hand: not those of what it does not know.
CHANGED = {
    "resnet, grouped": changed("conv2", conv(groups=2)),
    "resnet, circular": changed("conv1", conv(padding_mode="circular")),
    "resnet, with a bias": changed("conv1", conv(bias=True)),
    "resnet, centred weight": changed("conv1", lambda _: Centred(4, 4, 3, 1, 1, bias=False)),
    "resnet, one norm twice": changed("norm2", lambda block: block.norm1),
    "resnet, of another class": changed("__class__", lambda _: CentredBlock),
    "resnet, hooked": hooked_block,
}

ROWS, STEPS, IMAGES, WIDE = (7, 6), (5, 7, 6), (7, 1, 8, 8), (64, 6)

#: name -> (builds a model, shape of its input)
USERS = {
    "sum over the batch": (lambda: seq(of(lambda s, x: (x * s.w).cumsum(0), w=scale)), ROWS),
    "wide, then summed": (
        lambda: seq(nn.Linear(6, 300), of(lambda _, x: x.cumsum(0)), nn.Linear(300, 3)),
        WIDE,
    ),
    "batch norm by function": (
        lambda: seq(
            nn.Linear(6, 6), of(lambda _, x: functional.batch_norm(x, None, None, None, None, True))
        ),
        ROWS,
    ),
    "batch norm": (lambda: seq(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()), ROWS),
    "batch norm in evaluation": (with_its_norm_in_evaluation, ROWS),
    "time first transformer": (
        lambda: seq(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)),
        STEPS,
    ),
    "time first lstm": (lambda: seq(Cell(False), nn.Linear(6, 6)), STEPS),
    "batch first lstm": (lambda: seq(Cell(True), nn.Linear(6, 6)), STEPS),
    "attention over the batch": (lambda: seq(of(attends_over_the_batch, l=linear(6, 18))), ROWS),
    "softmax over the batch": (lambda: seq(nn.Linear(6, 6), nn.Softmax(0)), ROWS),
    "softmax by negative dimension": (lambda: seq(nn.Linear(6, 6), nn.Softmax(-2)), ROWS),
    "flattened with the batch": (
        lambda: seq(nn.Linear(6, 6), nn.Flatten(0), nn.Linear(42, 3)),
        ROWS,
    ),
    "unflattened batch": (
        lambda: seq(nn.Linear(6, 6), nn.Unflatten(0, (7, 1)), nn.LayerNorm(6)),
        ROWS,
    ),
    "norm over the batch": (lambda: seq(nn.Linear(6, 6), nn.LayerNorm((7, 6))), ROWS),
    "one vector": (lambda: seq(nn.Linear(6, 6), nn.ReLU(inplace=True)), (6,)),
    "one image": (lambda: seq(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(1)), (1, 8, 8)),
    "subclass": (lambda: nn.Sequential(Subclass(6, 6), nn.Linear(6, 3)), ROWS),
    "in place on steps": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
        STEPS,
    ),
    "in place first": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Linear(6, 3)
        ),
        ROWS,
    ),
    "counts": (lambda: nn.Sequential(Counts(), Counts()), ROWS),
    "draws": (lambda: nn.Sequential(Draws(), nn.Dropout(0.3), Draws()), ROWS),
    "dropout in a segment": (
        lambda: seq(nn.Linear(6, 300), nn.Dropout(0.5), nn.Linear(300, 3)),
        WIDE,
    ),
    "spectral norm": (
        lambda: seq(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Tanh()),
        ROWS,
    ),
    "spectral norm by hook": (
        lambda: seq(nn.utils.spectral_norm(nn.Linear(6, 6)), nn.Tanh()),
        ROWS,
    ),
    "spectral norm by hook, alone": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 6)), nn.Tanh()),
        ROWS,
    ),
    "hook that changes": (lambda: hooked(lambda m, x, y: y - y.mean(0)), ROWS),
    "twice the same": (lambda: twice(nn.Linear(6, 6)), ROWS),
    "twice the same norm": (lambda: twice(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))), ROWS),
    "in two containers": (in_two_containers, ROWS),
    "tied": (tied, ROWS),
    "frozen in part": (frozen_in_part, ROWS),
    "remembers": (lambda: nn.Sequential(RemembersState(), nn.Linear(6, 3)), ROWS),
    "auxiliary loss": (AuxiliaryLoss, ROWS),
    "many tensors": (Masked, (7, 6)),
    "blocks": (InBlocks, ROWS),
    "methods": (DeclaresItsOwn, ROWS),
    "users' own": (users_own, IMAGES),
    "cnn2": (cnn2, IMAGES),
    "cnn2 sparse": (lambda: cnn2("block"), IMAGES),
    "resnet, batch norm": (lambda: resnet("block", "batch"), IMAGES),
    "resnet, group norm": (lambda: resnet("block", "group"), IMAGES),
    "resnet, dense": (lambda: resnet(None, "batch"), IMAGES),
    **{name: (made, IMAGES) for name, made in CHANGED.items()},
}


def build(name):
    """Return a user's model in float64, the same each time, and its input."""
    made, shape = USERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = made().double().train()
        for number, parameter in enumerate(net.parameters()):
            if parameter.dim() < 2 and "resnet" not in name:
                with torch.no_grad():
                    parameter.normal_(0.8, 0.3, generator=generator(number))
    return net, torch.randn(shape, generator=generator(3), dtype=torch.float64)
