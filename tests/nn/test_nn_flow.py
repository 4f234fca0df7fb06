"""Stem and head by the flow of data, whatever the order of definition."""

import pytest
import torch
from nn_cases import draw, seeded
from torch import nn
from torch.nn import functional

from mest_fed.nn import Ends, Reason, layer_densities, sparsifiable, sparsify


def ends(model):
    """Return the layers that stay dense as stem, and as head."""
    rows = layer_densities(model)
    return tuple({r.name for r in rows if r.reason is it} for it in (Reason.STEM, Reason.HEAD))


class Backwards(nn.Module):
    """Defines its classifier first and its stem last."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(16, 3)
        self.hidden = nn.Linear(16, 16)
        self.second, self.first = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 8, 3)
        self.stem = nn.Conv2d(1, 8, 3)

    def forward(self, x):
        x = self.second(self.first(self.stem(x))).relu().mean((2, 3))
        return self.classifier(self.hidden(x))


class Heads(nn.Module):
    """Two heads in a dictionary, an optional mask, and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 3), "b": nn.Linear(16, 4)})
        self.body = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 16)])
        self.unused = nn.Linear(16, 16)

    def forward(self, x, mask=None):
        for layer in self.body:
            x = layer(x).relu()
        if mask is not None:
            x = x * mask
        return {name: head(x) for name, head in self.heads.items()}


class Segmentation(nn.Module):
    """Ends in a convolution; its linear layers are inside."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 2, 3, padding=1)
        self.left, self.right = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Linear(8, 8)

    def forward(self, depth, colour):
        y = self.body(self.left(depth) + self.right(colour))
        return self.head(y * self.gate(y.mean((2, 3)))[..., None, None])


class Residual(nn.Module):
    """Every branch reaches the output past the others; the last one alone makes it."""

    def __init__(self):
        super().__init__()
        self.last, self.first = (self.branch() for _ in range(2))

    def branch(self):
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        x = x + self.first(x)
        return x + self.last(x)


class Functional(nn.Module):
    """Reads the weight of its classifier instead of calling it."""

    def __init__(self):
        super().__init__()
        self.classifier, self.hidden = nn.Linear(8, 2), nn.Linear(8, 8)

    def forward(self, x):
        return functional.linear(self.hidden(x), self.classifier.weight)


class Conditional(nn.Module):
    """Decides by data, as assertions do."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        assert x.shape[-1] == 8
        x = self.first(x)
        return self.last(x * 2 if x.sum() > 0 else x)


class Untraceable(nn.Module):
    """Asks how long its input is, which a trace cannot say."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return torch.cat([self.last(self.first(row)) for row in list(x)])


class Holder(nn.Module):
    """Has a step that cannot be traced; it can be traced itself."""

    def __init__(self):
        super().__init__()
        self.head, self.step, self.start = nn.Linear(8, 2), Untraceable(), nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.step(self.start(x)))


class Declared(Backwards):
    """Says itself what its ends are."""

    ends = Ends(stem=(), head=("hidden",))


CASES = {
    "classifier first, stem last": (Backwards(), {"stem"}, {"classifier"}),
    "several heads": (Heads(), set(), {"heads.a", "heads.b"}),
    "two stems, a convolution as head": (Segmentation(), {"left", "right"}, {"head"}),
    "residual": (Residual(), set(), {"last.2"}),
    "weight read": (Functional(), set(), {"classifier"}),
    "conditions": (Conditional(), set(), {"last"}),
    "untraceable inside": (Holder(), set(), {"head"}),
    "untraceable: order of definition": (Untraceable(), set(), {"first"}),
    "declared": (Declared(), set(), {"hidden"}),
    "inside another module": (nn.Sequential(Backwards(), nn.Linear(3, 2)), {"0.stem"}, {"1"}),
    "wrapped": (nn.DataParallel(Backwards()), {"module.stem"}, {"module.classifier"}),
    "torch's own container": (
        nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2)),
        set(),
        {"1"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ends(name):
    model, stem, head = CASES[name]
    assert ends(model) == (stem, head)


def test_what_is_sparse_is_what_lies_between():
    model = sparsify(seeded(Backwards()), "block", 0.5)
    assert ends(model) == ({"stem"}, {"classifier"})  # a sparse layer is a layer, too
    sparse = {row.name for row in layer_densities(model) if row.reason is None}
    assert sparse == {"hidden", "second", "first"}
    assert model(draw(2, 1, 9, 9)).shape == (2, 3)


class Moves(nn.Module):
    """Changes its state, draws, and has a hook that counts."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.calls, self.seen = 0, []
        self.register_buffer("count", torch.zeros(()))
        self.inner.register_forward_hook(lambda *_: self.seen.append(1))

    def forward(self, x):
        self.calls += 1
        self.count += 1
        return self.head(self.inner(x + torch.rand(8)))


def test_looking_at_a_model_does_not_move_it():
    model, before = Moves(), torch.get_rng_state()
    assert list(sparsifiable(model)) == ["inner.0", "inner.1"]
    assert (model.calls, model.count.item(), model.seen) == (0, 0, [])
    assert torch.equal(torch.get_rng_state(), before)
