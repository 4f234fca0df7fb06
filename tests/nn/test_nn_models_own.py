"""Models of a user's own: how their builders are called, what they draw, what is refused."""

import random

import numpy as np
import pytest
import torch
from nn_cases import generator
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import (
    SparseLayer,
    Sparsity,
    build_model,
    build_shell,
    read_state,
    sparsify,
    write_state,
)

IMAGE = (3, 8, 8)
OWN = """
import random

import numpy as np
import torch
from torch import nn

from mest_fed.nn import build_model
from mest_fed.nn.models.resnet import ResNet, resnet8


class Net(nn.Module):
    def __init__(self, channels=3, classes=10, width=8, table=False):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3)
        self.second = nn.Conv2d(width, width, 3)
        self.out = nn.Linear(width, classes)
        self.register_buffer("positions", torch.linspace(0, 1, width), persistent=False)
        self.noise = torch.randn(width)  # neither a parameter nor a buffer
        self.drawn = (random.random(), np.random.rand())

    def forward(self, x):
        y = self.second(self.first(x).relu()).mean((2, 3))
        return self.out(y + self.positions + self.noise)


def plain(input_shape, num_classes):
    return Net(input_shape[0], num_classes)

def by_place(shape, classes, width=8):
    return Net(shape[0], classes, width)

def named(num_classes):
    return Net(classes=num_classes)

def nothing():
    return Net()

def anything(*args, **options):
    shape, classes = args
    return Net(shape[0], classes, **options)

def some(input_shape, /, num_classes, *, num_tokens=None, norm="group"):
    model = Net(input_shape[0], num_classes)
    model.told = num_tokens, norm
    return model

def ours(input_shape, num_classes, width=1.0, norm="batch"):
    return ResNet((16, 32, 64), 1, input_shape, num_classes, width=width, norm=norm)

def trained(input_shape, num_classes):
    model = resnet8(input_shape, num_classes, width=0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model

def dense(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

def on_meta(input_shape, num_classes):
    with torch.device("meta"):
        return Net()

def fails(input_shape, num_classes):
    raise KeyError("nothing there")

def gives_none(input_shape, num_classes):
    return None

value = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a function from a builder's name to the reference of it."""
    file = tmp_path_factory.mktemp("own") / "own_nets.py"
    file.write_text(OWN)
    return lambda name: f"{file}:{name}"


def build(name, seed=0, **options):
    return build_model(name, IMAGE, 10, generator=generator(seed), **options)


@pytest.mark.parametrize("name", ["plain", "by_place", "named", "nothing", "anything", "some"])
def test_a_builder_gets_what_it_takes(own, name):
    model = build(own(name), sparsity=Sparsity("block", 0.5))
    assert isinstance(model.second, SparseLayer)
    assert model(torch.zeros(2, *IMAGE)).shape == (2, 10)


def test_options_are_passed_on(own):
    assert build(own("by_place"), options={"width": 4}).first.out_channels == 4
    assert build(own("anything"), options={"width": 4}).first.out_channels == 4
    assert build(own("Net"), options={"channels": 3, "classes": 10}).out.out_features == 10


def test_width_and_norm_go_to_a_builder_that_takes_them(own):
    assert build(own("some"), norm="batch").told == (None, "batch")
    assert build(own("ours"), width=0.5).conv1.out_channels == 8


def test_the_seed_decides_what_a_constructor_draws(own):
    first, again, other = (build(own("plain"), seed) for seed in (1, 1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert first.drawn == again.drawn
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.first.weight, other.first.weight)
    assert first.drawn != other.drawn


def test_global_generators_stay_as_they_are(own):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    build(own("plain"))
    build_shell(own("plain"), IMAGE, 10, scheme="block")
    with pytest.raises(InputError):
        build(own("fails"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_weights_are_those_of_the_constructor(own):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = nn.Conv2d(3, 8, 3).weight
    assert torch.equal(build(own("plain"), seed=7).first.weight, expected)


def test_a_shell_has_the_constructors_tensors(own):
    model = build(own("plain"), 3, sparsity=Sparsity("block", 0.5))
    shell = build_shell(own("plain"), IMAGE, 10, scheme="block", seed=3)
    write_state(shell, read_state(model))
    x = torch.randn(2, *IMAGE, generator=generator())
    assert torch.equal(shell(x), model(x))


@pytest.mark.parametrize("sparsity", [None, Sparsity("block", 0.2)])
def test_our_class_in_a_users_file_gives_the_same_bits(own, sparsity):
    given = {"width": 0.25, "norm": "group", "sparsity": sparsity}
    ours, theirs = build("resnet8", **given), build(own("ours"), **given)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_weights_that_a_builder_has_set_stay(own):
    model = build(own("trained"))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.eq(0.5).all(), name


def test_without_normalisation_a_users_sparse_layers_keep_their_norm(own):
    dense, sparse = build(own("plain")), build(own("plain"), sparsity=Sparsity("block", 0.2))
    norm = dense.second.weight.norm().item()
    assert sparse.second.values.norm().item() == pytest.approx(norm, rel=1e-5)
    after = sparsify(dense, "block", 0.2, keep_norm=True)
    assert torch.equal(after.second.values, sparse.second.values)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("absent", {}, "has no attribute 'absent'"),
        ("value", {}, "is an int; allowed: a function or class"),
        ("fails", {}, r"KeyError: 'nothing there' \(.*own_nets.py:\d+\)"),
        ("gives_none", {}, "gives None; allowed: what gives a torch.nn.Module"),
        ("Net", {"options": {"depth": 3}}, r"model.options.depth is no option of .*; allowed"),
        ("named", {"options": {"depth": 3}}, "model.options.depth is no option of .*: none"),
        ("plain", {"width": 2.0}, r"model.width = 2\.0 is not allowed: .* has no such option"),
        ("plain", {"norm": "batch"}, "model.norm = 'batch' .* has no such option"),
        (
            "dense",
            {"sparsity": Sparsity()},
            "dense': Sequential has no layer",
        ),
        ("on_meta", {}, "first.weight is on device meta; allowed: cpu"),
    ],
)
def test_refusals(own, name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        build(own(name), **options)
    assert "\n" not in str(caught.value)
