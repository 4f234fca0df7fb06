"""Stem and head by the flow of data, whatever the order of definition."""

import pytest
import torch
from nn_cases import draw, seeded
from torch import nn
from torch.nn import functional

from mest_fed.nn import Ends, Reason, layer_densities, sparsifiable, sparsify
from mest_fed.nn.models import Architecture


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


class Block(nn.Module):
    """A residual block of any order: ``body`` and ``shortcut`` add up."""

    def __init__(self, body, shortcut=None, before=None, after=None):
        super().__init__()
        self.shortcut = shortcut or nn.Identity()
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.body = body

    def forward(self, x):
        x = self.before(x)
        y = self.body(x)
        y += self.shortcut(x)
        return self.after(y)


class Untraced(Block):
    """Counts its examples, which a trace cannot."""

    def forward(self, x):
        return torch.cat([super(Untraced, self).forward(row[None]) for row in list(x)])


class Gated(nn.Module):
    """Squeeze and excitation by 1x1 convolutions."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Parallel(nn.Module):
    """Two 1x1 convolutions side by side, and branches that are laid end to end."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.small, self.large = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.left(x) + self.right(x)
        return torch.cat([self.small(x), self.large(x)], 1)


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)


def bottleneck(inputs, width, outputs):
    """Return the body of a ResNet-50 block."""
    return nn.Sequential(
        *(conv(inputs, width), nn.BatchNorm2d(width), nn.ReLU()),
        *(conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
        *(conv(width, outputs), nn.BatchNorm2d(outputs)),
    )


def inverted(channels):
    """Return the body of a MobileNetV2 block."""
    wide = 2 * channels
    depthwise = conv(wide, wide, 3, groups=wide)
    return nn.Sequential(conv(channels, wide), nn.ReLU6(), depthwise, conv(wide, channels))


def line(kernel):
    return nn.Conv1d(8, 8, kernel, padding=kernel // 2)


BLOCKS = {
    "ResNet-50": (
        Block(
            bottleneck(8, 4, 16), nn.Sequential(conv(8, 16), nn.BatchNorm2d(16)), after=nn.ReLU()
        ),
        {"shortcut.0"},
        {"body.0", "body.3", "body.6"},
    ),
    "identity": (Block(bottleneck(8, 4, 8)), set(), {"body.0", "body.3", "body.6"}),
    "normalised first": (
        Block(conv(8, 16, 3), conv(8, 16), before=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())),
        {"shortcut"},
        {"body"},
    ),
    "pooled shortcut": (
        Block(
            nn.Sequential(conv(8, 8, 3, stride=2), conv(8, 8, 3)),
            nn.Sequential(nn.AvgPool2d(2), conv(8, 8)),
        ),
        {"shortcut.1"},
        {"body.0", "body.1"},
    ),
    "MobileNetV2": (Block(inverted(8)), set(), {"body.0", "body.3"}),
    "MobileNetV2 stage": (
        nn.Sequential(inverted(8), Block(inverted(8)), Block(inverted(8))),
        set(),
        {f"{block}.{layer}" for block in ("0", "1.body", "2.body") for layer in (0, 3)},
    ),
    "1x1 convolution before a fork": (
        nn.Sequential(conv(8, 8), Block(bottleneck(8, 4, 8))),
        set(),
        {"0", "1.body.0", "1.body.3", "1.body.6"},
    ),
    "ResNet-50 stage": (
        nn.Sequential(
            Block(bottleneck(8, 4, 16), conv(8, 16), after=nn.ReLU()),
            Block(bottleneck(16, 4, 16), after=nn.ReLU()),
            Block(bottleneck(16, 4, 8), conv(16, 8), after=nn.ReLU()),
        ),
        {"0.shortcut", "2.shortcut"},
        {f"{block}.body.{layer}" for block in range(3) for layer in (0, 3, 6)},
    ),
    "normalised first, stage": (
        nn.Sequential(
            Block(
                bottleneck(8, 4, 16),
                conv(8, 16),
                before=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()),
            ),
            Block(nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), bottleneck(16, 4, 16))),
        ),
        {"0.shortcut"},
        {f"{body}.{layer}" for body in ("0.body", "1.body.2") for layer in (0, 3, 6)},
    ),
    "inverted residuals with a gate": (
        nn.Sequential(
            nn.Sequential(conv(8, 16), conv(16, 16, 3, groups=16), Gated(16), conv(16, 8)),
            Block(nn.Sequential(conv(8, 16), Gated(16), conv(16, 8))),
        ),
        set(),
        {
            *("0.0", "0.2.down", "0.2.up", "0.3"),
            *("1.body.0", "1.body.1.down", "1.body.1.up", "1.body.2"),
        },
    ),
    "squeeze and excitation": (
        Block(nn.Sequential(conv(8, 8, 3), Gated(8))),
        set(),
        {"body.0", "body.1.down", "body.1.up"},
    ),
    "side by side": (Parallel(), set(), {"left", "right", "small", "large"}),
    "not traced": (
        nn.Sequential(Untraced(Block(conv(8, 8, 3), conv(8, 8)))),
        {"0.body.shortcut"},
        {"0.body.body"},
    ),
    "1-D": (Block(nn.Sequential(line(3), line(1)), line(1)), {"shortcut"}, {"body.0", "body.1"}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_projection_shortcuts_alone_of_1x1_convolutions_stay_dense(name):
    block, shortcuts, sparse = BLOCKS[name]
    if name == "1-D":
        model = nn.Sequential(nn.Conv1d(1, 8, 3), block, nn.Flatten(), nn.LazyLinear(2))
        model(draw(1, 1, 8))
    else:
        model = nn.Sequential(nn.Conv2d(1, 8, 3), block, nn.Flatten(), nn.LazyLinear(2))
        model(draw(1, 1, 10, 10))
    rows = {row.name.removeprefix("1."): row.reason for row in layer_densities(model)}
    assert {name for name, it in rows.items() if it is Reason.SHORTCUT} == shortcuts
    assert {name for name, it in rows.items() if it is Reason.ELIGIBLE} == sparse


def test_mobilenetv2_has_no_projection_shortcut():
    rows = layer_densities(Architecture("mobilenetv2", (3, 32, 32), 10).shell())
    assert not [row.name for row in rows if row.reason is Reason.SHORTCUT]
    assert all(row.reason is Reason.ELIGIBLE for row in rows if row.name.endswith("project"))


def test_a_layer_behind_an_embedding_is_no_stem_and_one_before_a_recurrent_layer_no_head():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.conv = nn.Embedding(10, 8), nn.Conv1d(8, 8, 3)
            self.lstm = nn.LSTM(8, 8)

        def forward(self, x):
            return self.lstm(self.conv(self.words(x).transpose(1, 2)).transpose(1, 2))[0]

    assert {row.name: row.reason for row in layer_densities(Text())} == {
        "words": Reason.KIND,
        "conv": Reason.ELIGIBLE,
        "lstm": Reason.KIND,
    }
