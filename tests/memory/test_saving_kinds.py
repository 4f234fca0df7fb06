"""Segments of models that are no ResNet: which are found, which are named, and what they save."""

import pytest
import torch
from torch import nn

from mest_fed.errors import InputError
from mest_fed.memory import (
    MemoryOptions,
    TrainingSetup,
    TrainingShape,
    footprint,
    memory_saving,
    trace_model,
)
from mest_fed.memory.activations import segments_of
from mest_fed.nn import sparsify
from mest_fed.sparsity import MestEM
from mest_fed.system.peak_meter import can_measure


class Inverted(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, channels, wide):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(channels, wide, 1), nn.GroupNorm(2, wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x):
        return x + self.project(self.depthwise(self.norm(self.expand(x)).relu()).relu())


class Tokens(nn.Module):
    """A small encoder for tokens."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.words(x)).mean(1))


class Recurrent(nn.Module):
    """Embedding, LSTM and a head."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(20, 16), nn.LSTM(16, 16, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.hidden(self.lstm(self.words(x))[0][:, -1]).relu())


def mobile():
    blocks = [Inverted(8, 32) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(1, 8, 3), *blocks, nn.Flatten(), nn.Linear(8 * 36, 5))


def keywords():
    """Return a DS-CNN: a stem, and blocks of a depthwise and a 1x1 convolution."""
    blocks = [
        nn.Sequential(
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        )
        for _ in range(3)
    ]
    model = nn.Module()
    model.stem, model.blocks, model.head = (
        nn.Conv2d(1, 8, 3),
        nn.ModuleList(blocks),
        nn.Linear(8, 5),
    )

    return _called(model, lambda m, x: m.head(_through(m.blocks, m.stem(x)).mean((2, 3))))


def activity():
    """Return a network of 1-D convolutions."""
    blocks = [
        nn.Sequential(nn.Conv1d(8, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.ReLU())
        for _ in range(3)
    ]
    return nn.Sequential(
        nn.Conv1d(3, 8, 5), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _called(model, forward):
    class Model(type(model)):
        def forward(self, x):
            return forward(self, x)

    model.__class__ = Model
    return model


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def words(n=6):
    return torch.arange(n * 7).reshape(n, 7) % 20


def series(n=6):
    return torch.rand(n, 3, 30, generator=torch.Generator().manual_seed(1))


MODELS = {
    "MobileNetV2": (mobile, images, ["0", "1", "2", "3", "5"]),
    "DS-CNN": (keywords, images, ["blocks.0", "blocks.1", "blocks.2"]),
    "1-D": (activity, series, ["0", "1", "2", "3", "6"]),
    "transformer": (Tokens, words, [f"encoder.layers.{i}" for i in range(3)]),
    "LSTM": (Recurrent, words, []),
}
NAMED = {
    "MobileNetV2": "1, 2, 3",
    "DS-CNN": "blocks.*",
    "1-D": "[123]",
    "transformer": "words, encoder.layers.?",
    "LSTM": "lstm, hidden",
}


def built(name):
    build, _, _ = MODELS[name]
    torch.manual_seed(0)
    return sparsify(build(), "block", 0.5).train()


def step(model, x, options):
    with memory_saving(model, options) as forward:
        model.zero_grad()
        loss = nn.functional.cross_entropy(forward(x), torch.arange(len(x)) % 5)
        loss.backward()
    return loss, {name: it.grad.clone() for name, it in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_the_segments_that_are_found(name):
    model, (_, _, expected) = built(name), MODELS[name]
    found = [segment.name for segment in segments_of(model)]
    assert found == expected


@pytest.mark.parametrize("saved", ["fp32", "mask"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_recomputation_changes_no_gradient(name, named, saved):
    if name == "LSTM" and not named:
        pytest.skip("nothing is found")
    model, inputs = built(name), MODELS[name][1]()
    plain = step(model, inputs, MemoryOptions())
    segments = NAMED[name] if named else ""
    again = step(model, inputs, MemoryOptions("segments", saved, segments=segments))
    torch.testing.assert_close(again, plain)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("decoder.*", r"^memory\.segments = 'decoder\.\*' matches no module of .* some: \w"),
        ("encoder.layers", r"segments = 'encoder\.layers' .* such as encoder\.layers\.\*"),
        ("encoder, encoder.layers.1", "do not overlap, as with encoder"),
        ("encoder.layers.0.dropout", "modules with parameters"),
    ],
)
def test_what_cannot_be_a_segment_is_refused_by_name(named, message):
    model = built("transformer")
    with pytest.raises(InputError, match=message):
        segments_of(model, named)
    options = MemoryOptions("segments", segments=named)
    with pytest.raises(InputError, match=message), memory_saving(model, options):
        pass


def test_segments_that_are_named_freeze_and_count_as_found_ones():
    model = built("transformer")
    options = MemoryOptions(frozen=2, segments="words, encoder.layers.*")
    with memory_saving(model, options):
        trained = {name for name, it in model.named_parameters() if it.requires_grad}
    assert not any(name.startswith(("words", "encoder.layers.0")) for name in trained)
    assert any(name.startswith("encoder.layers.1") for name in trained)


@pytest.mark.skipif(not can_measure(), reason="needs /proc and fork")
def test_a_recurrent_layer_is_measured_and_the_warning_names_it():
    trace = trace_model(built("LSTM"), (7,), torch.int64)
    shape = TrainingShape(0.5, "uniform", 8, 8)
    with pytest.warns(RuntimeWarning, match=r"lstm \(LSTM\) cannot be traced .* measured instead"):
        found = footprint(trace, TrainingSetup(MestEM(), messages=False), shape)
    assert found.total > found.parts()["values"] > 0
