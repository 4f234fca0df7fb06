"""What hangs on a layer survives ``sparsify`` and ``to_dense``, or the layer stays dense."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from nn_cases import draw, seeded
from torch import nn
from torch.nn.utils import parametrizations, prune

from mest_fed.errors import InputError
from mest_fed.nn import (
    Mutator,
    Reason,
    SparseConv2d,
    SparseLinear,
    Sparsity,
    build_model,
    convert,
    layer_densities,
    mask_groups,
    sparsify,
    to_dense,
)
from mest_fed.nn.slots import gathered
from mest_fed.sparsity import Bounds, MestEM

X = draw(5, 8)


def mlp(*layers):
    """Return linear layers 8-8-...-2, of which all but the last can be sparse."""
    return seeded(nn.Sequential(*(layers or (nn.Linear(8, 8),)), nn.Linear(8, 2)))


def reasons(model):
    return {row.name: row.reason for row in layer_densities(model)}


def test_a_frozen_layer_stays_frozen():
    model = mlp(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    sparsify(model, "block", 0.5)
    assert [model[0].values.requires_grad, model[0].bias.requires_grad] == [False, False]
    assert [model[1].values.requires_grad, model[1].bias.requires_grad] == [True, False]
    plain = to_dense(model)
    assert [it.requires_grad for it in plain.parameters()] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]


def test_a_frozen_layer_is_not_mutated():
    model = mlp(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.requires_grad_(False)
    sparsify(model, "unstructured", 0.5)
    before = [model[i].slots.clone() for i in (0, 1)]
    expected = to_dense(model)[0](X)
    Mutator(model, MestEM()).mutate(Bounds(floor=0.5), lambda name: np.random.default_rng(0))
    assert torch.equal(model[0].slots, before[0])
    assert not torch.equal(model[1].slots, before[1])
    torch.testing.assert_close(model[0](X), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_type_mode_attributes_and_gradients_stay(dtype):
    model = mlp().to(dtype)
    layer, name = model[0], model[0].weight
    layer.eval()
    layer.note, name.lr_scale = "mine", 3
    weight = layer.weight.detach().clone()
    name.grad = torch.arange(64.0).view(8, 8).to(dtype)
    dense_gradient = name.grad.clone()
    sparsify(model, "unstructured", 0.25)
    assert model[0] is layer
    assert isinstance(layer, SparseLinear)
    assert (layer.training, layer.note, layer.in_features) == (False, "mine", 8)
    assert layer.values.dtype is dtype
    assert layer.values.lr_scale == 3
    active = layer.slots.long()
    assert torch.equal(layer.values.grad.flatten(), dense_gradient.flatten()[active])
    plain = to_dense(model)[0]
    assert (plain.training, plain.note, plain.weight.lr_scale) == (False, "mine", 3)
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight.flatten()[active], weight.flatten()[active])
    assert vars(plain).keys() == vars(nn.Linear(8, 8)).keys() | {"note"}


def hooked(model, log):
    """Hang every kind of hook on the first layer; return their handles."""

    def noting(kind):
        return lambda *_: log.append(kind)

    layer = model[0]
    return [
        layer.register_forward_pre_hook(noting("forward-pre")),
        layer.register_forward_hook(noting("forward")),
        layer.register_full_backward_pre_hook(noting("backward-pre")),
        layer.register_full_backward_hook(noting("backward")),
        layer.register_state_dict_pre_hook(noting("state-dict-pre")),
        layer.register_state_dict_post_hook(noting("state-dict")),
        layer.register_load_state_dict_pre_hook(noting("load-pre")),
        layer.register_load_state_dict_post_hook(noting("load")),
        layer.weight.register_hook(noting("gradient")),
        layer.weight.register_post_accumulate_grad_hook(noting("accumulated")),
    ]


def fired(model, log):
    log.clear()
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    model.load_state_dict(model.state_dict())
    return sorted(log)


def test_hooks_fire_as_they_did_and_can_still_be_removed():
    model, log = mlp(), []
    handles = hooked(model, log)
    before = fired(model, log)
    assert len(before) == len(handles)
    sparsify(model, "block", 0.5)
    assert fired(model, log) == before
    plain = to_dense(model)
    assert fired(plain, log) == before
    for handle in handles:
        handle.remove()
    assert fired(model, log) == []
    assert fired(plain, log) == before  # a copy has hooks of its own


def test_a_hook_changes_the_gradient_of_the_values():
    model = mlp()
    twice = copy.deepcopy(model)
    twice[0].weight.register_hook(lambda gradient: 2 * gradient)
    for net in (model, twice):
        sparsify(net, "block", 0.5)(X).sum().backward()
    assert torch.equal(twice[0].values.grad, 2 * model[0].values.grad)


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


def overridden(layer):
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)
    return layer


COMPUTED = {
    "weight norm by hook": old_weight_norm,
    "spectral norm by hook": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": pruned,
    "forward replaced": overridden,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_layer_that_something_else_computes_stays_dense(name):
    model = mlp(COMPUTED[name](nn.Linear(8, 8)), nn.Linear(8, 8))
    twin, kind = copy.deepcopy(model.state_dict()), type(model[0])
    sparsify(model, "unstructured", 1.0)
    assert reasons(model)["0"] is Reason.COMPUTED
    assert type(model[0]) is kind
    assert isinstance(model[1], SparseLinear)
    assert model[0].state_dict().keys() == {k[2:] for k in twin if k.startswith("0.")}
    model.eval()
    model(X)
    plain = to_dense(model)
    torch.testing.assert_close(plain(X), model(X))
    assert type(plain[0]) is kind
    assert plain.state_dict().keys() == twin.keys()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.hidden, self.again, self.turned = (nn.Linear(8, 8) for _ in range(3))
        self.free = nn.Linear(8, 8)
        self.output = nn.Linear(8, 12)
        self.again.weight = self.hidden.weight
        self.turned.weight = nn.Parameter(self.free.weight.detach().t())
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.turned(self.free(self.again(self.hidden(self.embedding(tokens)))))
        return self.output(x)


def test_tied_weights_stay_tied():
    model = seeded(Tied())
    with pytest.raises(InputError, match="shared with another layer"):
        sparsify(model)  # every layer is tied, by a parameter or by its memory
    model.more = nn.Linear(8, 8)
    sparsify(model, "block", 0.5)
    plain = to_dense(model)
    for net in (model, plain):
        assert net.output.weight is net.embedding.weight
        assert net.again.weight is net.hidden.weight
    assert isinstance(model.more, SparseLinear)
    tokens = torch.arange(6)
    torch.testing.assert_close(plain(tokens), model(tokens))


def test_a_shared_bias_stays_shared():
    model = mlp(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias = model[0].bias
    plain = to_dense(sparsify(model, "block", 0.5))
    assert model[0].bias is model[1].bias
    assert plain[0].bias is plain[1].bias


def test_one_layer_under_two_names_stays_one():
    shared = nn.Linear(8, 8)
    model = mlp(shared, nn.Tanh(), shared)
    model.kept_elsewhere = [shared]
    plain = to_dense(sparsify(model, "block", 0.5))
    assert model[0] is model[2] is model.kept_elsewhere[0] is shared
    assert isinstance(shared, SparseLinear)
    assert plain[0] is plain[2] is plain.kept_elsewhere[0]
    assert type(plain[0]) is nn.Linear


def test_a_name_that_the_sparse_layer_needs_keeps_a_layer_dense():
    model = mlp(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_buffer("slots", torch.ones(3))
    model[1].mask = "mine"
    sparsify(model, "block", 0.5)
    assert [reasons(model)[name] for name in ("0", "1")] == [Reason.NAME, Reason.NAME]
    assert model[1].mask == "mine"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch, failing):
    model = mlp(*(nn.Linear(8, 8) for _ in range(3)))
    before = copy.deepcopy(model.state_dict())
    calls = []
    choose = convert.magnitude_mask

    def fails(*given):
        calls.append(given)
        if len(calls) == failing + 1:
            raise MemoryError
        return choose(*given)

    monkeypatch.setattr(convert, "magnitude_mask", fails)
    with pytest.raises(MemoryError):
        sparsify(model)
    assert [type(it) for it in model] == [nn.Linear] * 4
    assert all(torch.equal(before[name], it) for name, it in model.state_dict().items())


def test_the_weight_can_be_read_and_its_gradient_reaches_the_values():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.outer(nn.functional.linear(x, self.inner.weight, self.inner.bias))

    model = sparsify(seeded(Reads()), "block", 0.5)
    plain = to_dense(model)
    for net in (model, plain):
        net(X).square().sum().backward()
    layer = model.inner
    torch.testing.assert_close(model(X), plain(X))
    expected = gathered(layer.layout, plain.inner.weight.grad, layer.slots)
    torch.testing.assert_close(layer.values.grad, expected)
    assert "weight" not in dict(layer.named_parameters())
    with pytest.raises(InputError, match="weight"):
        layer.weight = nn.Parameter(torch.ones(8, 8))


def test_copies_and_pickles_of_a_sparse_model():
    model = sparsify(mlp(), "block", 0.5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X))
        assert twin[0].values is not model[0].values
        assert type(to_dense(twin)[0]) is nn.Linear


def test_pairs_stay_pairs_inside_another_module():
    model = build_model(
        "resnet8",
        (1, 8, 8),
        10,
        generator=torch.Generator(),
        width=0.5,
        sparsity=Sparsity("channel", 0.5),
    )
    inside = nn.Sequential(model)
    assert [len(group.layers) for group in mask_groups(inside)] == [2, 2, 2]
    assert next(group.name for group in mask_groups(inside)) == "0.stage1.0.conv1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own code
def test_a_compiled_model_is_made_sparse_and_runs_on():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    sparsify(compiled, "block", 0.5)
    torch.testing.assert_close(compiled(X), model(X))
    plain = to_dense(compiled)
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    torch.testing.assert_close(plain(X), model(X))


COMPILE_FIRST_NEEDED_WITHIN_A_TRACE = """
import importlib

import torch
from torch import fx, nn

from mest_fed.nn import sparsify


class Compiles(nn.Module):
    def forward(self, x):
        importlib.import_module("torch._dynamo.polyfills.loader")  # what torch.compile loads
        return x + 1


fx.Tracer().trace(Compiles())
layers = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
for model, x in ((layers, torch.ones(3, 12)), (attention, torch.ones(2, 3, 8))):
    sparsify(model, "block", 0.5)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))
weights = attention.self_attn
x = torch.ones(2, 3, 8)
expected = weights(x, x, x)
torch.testing.assert_close(torch.compile(weights, backend="eager")(x, x, x), expected)
"""


@pytest.mark.soak
def test_a_sparse_model_is_compiled_after_a_trace_that_compiled():
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-c",
        COMPILE_FIRST_NEEDED_WITHIN_A_TRACE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_images_without_a_batch():
    model = seeded(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)))
    sparsify(model, "block", 0.5)
    assert isinstance(model[1], SparseConv2d)
    torch.testing.assert_close(model(draw(1, 9, 9)), to_dense(model)(draw(1, 9, 9)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), "parameter 0.weight is lazy"),
        (nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Linear(8, 2)), "on the meta device"),
        (sparsify(mlp(), "block", 0.5), "no layer that can be made sparse: sparse already: 1"),
        (nn.Linear(4, 4), "Linear has no layer that can be made sparse: 16 in Linear .head"),
    ],
    ids=["lazy", "meta", "sparse already", "one layer"],
)
def test_refusals(model, message):
    with pytest.raises(InputError, match=message):
        sparsify(model)
