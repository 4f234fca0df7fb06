"""Which segments a model has, and what is said where there are none to recompute."""

import warnings

import pytest
import torch
from saving_cases import generator
from torch import nn

from mest_fed.memory import MemoryOptions, NothingSavedWarning, memory_saving
from mest_fed.memory.activations import segments_of
from mest_fed.nn.models.mobilenet import MobileNetV2


class Block(nn.Module):
    def __init__(self, inside=nn.Identity):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(4, 4), inside(), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.inside(self.first(x).tanh()))


class Model(nn.Module):
    """Calls its parts in their order."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            for layer in part if isinstance(part, nn.ModuleList) else [part]:
                x = layer(x)
        return x


class UsesWeightsAlone(Model):
    def forward(self, x):
        for block in self.blocks:
            x = block.last(block.first(x))
        return x


def mlp():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def shared():
    part = Block()
    return Model(a=nn.Sequential(part, nn.Tanh()), b=nn.Sequential(part))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (mlp(), ["0", "2"]),
        (Model(body=mlp(), end=nn.Linear(4, 4)), ["body.0", "body.2"]),
        (Model(blocks=nn.ModuleList([Block(), Block()])), ["blocks.0", "blocks.1"]),
        (Model(blocks=nn.ModuleList([Block(mlp), Block(mlp)])), ["blocks.0", "blocks.1"]),
        (Model(parts=nn.ModuleList([mlp(), Block()])), ["parts.0", "parts.1"]),
        (
            Model(stages=nn.ModuleList([nn.Sequential(Block(), Block()), Block()])),
            ["stages.0.0", "stages.0.1", "stages.1"],
        ),
        (Model(segments=nn.ModuleList([Block(), Block()])), ["segments.0", "segments.1"]),
        (
            Model(heads=nn.ModuleDict({"one": Block(), "two": mlp()})),
            ["heads.one", "heads.two"],
        ),
        (Model(a=Block(), b=Block(), c=nn.Linear(4, 4)), ["a", "b"]),
        (Model(only=Model(a=Block(), b=Block())), ["only.a", "only.b"]),
        (Model(only=Block()), []),
        (Model(a=nn.Linear(4, 4), b=nn.Linear(4, 4)), []),
        (nn.Linear(4, 4), []),
        (shared(), ["a.0"]),
    ],
)
def test_segments_are_found(model, names):
    assert [segment.name for segment in segments_of(model)] == names


def train(model):
    x = torch.randn(3, 4, generator=generator())
    with memory_saving(model, MemoryOptions("segments")) as forward:
        for _ in range(2):
            forward(x).sum().backward()


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        Model(a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
        UsesWeightsAlone(blocks=nn.ModuleList([Block(), Block()])),
    ],
)
def test_where_nothing_is_saved_one_warning_says_so(model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(model)
    assert [warning.category for warning in said] == [NothingSavedWarning]
    assert said[0].filename == __file__
    assert "put its blocks into an nn.Sequential or an nn.ModuleList" in str(said[0].message)


def test_where_something_is_saved_nothing_is_said():
    train(Model(blocks=nn.ModuleList([Block(), Block()])))
    with memory_saving(nn.Linear(4, 4), MemoryOptions("norms", "int8")):
        pass


def test_a_module_in_two_places_is_run_again_for_each_and_left_as_it_was():
    model = shared()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    train(model)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


def test_the_first_segments_by_definition_may_be_called_last():
    """Frozen, they still hand on the gradients of what stands before them."""

    class Turned(Model):
        def forward(self, x):
            return self.head(self.body(x))

    model = Turned(head=Block(), body=Block())
    with memory_saving(model, MemoryOptions(frozen=1)) as forward:
        forward(torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad is None for parameter in model.head.parameters())
    assert all(parameter.grad.any() for parameter in model.body.parameters())


@pytest.mark.parametrize("recompute", ["none", "norms", "segments"])
def test_the_gradient_of_an_input_goes_through_frozen_segments(recompute):
    model = Model(a=Block(), b=Block())
    x = torch.randn(3, 4, generator=generator(), requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    with memory_saving(model, MemoryOptions(recompute, frozen=1)) as forward:
        (dx,) = torch.autograd.grad(forward(x).sum(), x)
    torch.testing.assert_close(dx, expected)


def test_what_a_model_does_last_is_its_last_segment():
    net = MobileNetV2((3, 8, 8), 10, width=0.25)
    names = [segment.name for segment in segments_of(net)]
    assert names[0] == "stem"
    assert names[-1] == "top"
    assert names[1:-1] == [f"blocks.{number}" for number in range(len(names) - 2)]
