"""Models that are sparse from the start, and shells: the same bits, no dense model on the way."""

import gc
import weakref

import pytest
import torch
from nn_cases import SCHEMES, draw, generator
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import (
    SparseLayer,
    Sparsity,
    build_model,
    build_shell,
    model_spec,
    read_state,
    sparsify,
    write_state,
)
from mest_fed.nn.convert import Sparsifier

IMAGE = (3, 8, 8)


def build(name="resnet8", *, width=0.25, norm="batch", **options):
    return build_model(name, IMAGE, 10, generator=generator(), width=width, norm=norm, **options)


def shell(name="resnet8", scheme="block", *, width=0.25, norm="batch"):
    return build_shell(name, IMAGE, 10, width=width, norm=norm, scheme=scheme)


def equal(ours, expected):
    state = ours.state_dict()
    assert list(state) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype, name
    assert model_spec(ours) == model_spec(expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("name", ["resnet8", "cnn2"])
def test_sparse_from_the_start_is_sparsified_afterwards(name, scheme, distribution):
    given = Sparsity(scheme, 0.2, distribution)
    ours = build(name, sparsity=given)
    after = sparsify(build(name), scheme, 0.2, distribution, keep_norm=name == "cnn2")
    equal(ours, after)
    assert any(isinstance(module, SparseLayer) for module in ours.modules())


def test_a_weight_of_zeros_has_no_norm_to_keep():
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    model = sparsify(nn.Sequential(layer, nn.Linear(8, 2)), "block", 0.5, keep_norm=True)
    assert torch.equal(model[0].values, torch.zeros_like(model[0].values))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_normalisation_sparse_layers_keep_their_norm(scheme):
    dense, ours = build("cnn2", width=1), build("cnn2", width=1, sparsity=Sparsity(scheme, 0.1))
    for name in ("conv2", "hidden"):
        expected = dense.get_submodule(name).weight.norm().item()
        assert ours.get_submodule(name).values.norm().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_shell_and_a_state_are_the_model(scheme, norm):
    sparsity = None if scheme is None else Sparsity(scheme, 0.2)
    model = build(norm=norm, sparsity=sparsity)
    with torch.no_grad():
        model(draw(4, *IMAGE))  # running statistics move
    ours = shell(scheme=scheme, norm=norm)
    write_state(ours, read_state(model))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()  # which states leave out: nothing reads it
    equal(ours, model)
    x = draw(2, *IMAGE, seed=1)
    assert torch.equal(ours.eval()(x), model.eval()(x))


def test_nothing_is_active_in_a_shell():
    ours = shell()
    layers = [module for module in ours.modules() if isinstance(module, SparseLayer)]
    assert len(layers) == 6
    assert all(layer.values.shape[0] == len(layer.slots) == 0 for layer in layers)
    assert not any(tensor.is_meta for tensor in ours.state_dict().values())
    assert model_spec(ours) == model_spec(build(sparsity=Sparsity("block", 0.2)))


def test_nothing_is_drawn_for_a_shell():
    before = torch.get_rng_state()
    shell()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scheme", ["block", "channel"])
@pytest.mark.parametrize("name", ["resnet8", "cnn2"])
def test_at_most_one_dense_layer_at_a_time(monkeypatch, name, scheme):
    weights, alive = [], []
    convert = Sparsifier.convert

    def noting(self, layer, **options):
        weights.append(weakref.ref(self.model.get_submodule(layer).weight))
        alive.append(sum(ref() is not None for ref in weights))
        convert(self, layer, **options)

    monkeypatch.setattr(Sparsifier, "convert", noting)
    gc.disable()  # a weight must not wait for the collector either
    try:
        model = build(name, sparsity=Sparsity(scheme, 0.2))
        left = sum(ref() is not None for ref in weights)
    finally:
        gc.enable()
    assert alive == [1] * len(weights)
    assert len(weights) == {"resnet8": 6, "cnn2": 2}[name]
    assert left == 0
    assert not any(type(module) is nn.Conv2d for module in model.modules())


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (Sparsity("rows", 0.1), "scheme = 'rows' is not allowed"),
        (Sparsity("block", 0.0), r"density = 0\.0 is not allowed"),
        (Sparsity("block", 0.1, "even"), "distribution = 'even' is not allowed"),
    ],
)
def test_refusals_come_before_any_weight(monkeypatch, sparsity, message):
    monkeypatch.setattr("mest_fed.nn.models.architecture.initialise", None)
    with pytest.raises(InputError, match=message):
        build(sparsity=sparsity)
