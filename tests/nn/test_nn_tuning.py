"""Tuning a model: every case once, and the model as it was."""

import copy

import pytest
import torch
from nn_cases import SCHEMES, chain, draw, generator, seeded, small_resnet
from torch import nn

from mest_fed.kernels import native
from mest_fed.kernels.choice import EVERYTHING_DENSE, PADDED, Choices, case_of, rule
from mest_fed.nn import SparseConv2d, SparseLayer, SparseLinear, sparsify, to_dense
from mest_fed.nn.tuning import by_rule, decide_layers, set_choices, tune

pytestmark = pytest.mark.skipif(native.variant() is None, reason="no compiled kernels")

IMAGE = (1, 8, 8)


class Judge:
    """A benchmark that dense weights win, and that counts itself."""

    def __init__(self, best="dense"):
        self.best, self.held = best, 0

    def __call__(self, candidates):
        self.held += 1
        return {name: 1.0 if name == self.best else 2.0 for name in candidates}


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_case_is_tuned_once_and_is_the_one_that_layers_look_up(scheme):
    model, judge = small_resnet(scheme), Judge()
    rows = tune(model, IMAGE, 4, benchmark=judge)
    names = [name for row in rows for name in row.layers]
    assert sorted(names) == sorted(sparse_layers(model))
    assert judge.held == 3 * len(rows) == 3 * len({row.case for row in rows})
    assert {row.choice for row in rows} == {EVERYTHING_DENSE}
    assert all(set(row.milliseconds["forward"]) > {"dense"} for row in rows)
    set_choices(model, Choices({row.case: row.choice for row in rows}))
    model(draw(4, *IMAGE))
    assert {layer.choice for layer in sparse_layers(model).values()} == {EVERYTHING_DENSE}


def test_cases_of_1d_convolutions_and_projections_are_those_that_layers_look_up():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    line = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3), nn.Conv1d(8, 2, 3))
    for model, size in ((nn.Sequential(encoder, nn.Linear(8, 3)), (5, 8)), (line, (3, 12))):
        sparsify(seeded(model), "block", 0.25)
        rows = tune(model, size, 4, benchmark=Judge())
        assert sorted(n for row in rows for n in row.layers) == sorted(sparse_layers(model))
        set_choices(model, Choices({row.case: row.choice for row in rows}))
        model(draw(4, *size))
        assert {it.choice for it in sparse_layers(model).values()} == {EVERYTHING_DENSE}


def test_equal_layers_share_a_row():
    rows = tune(small_resnet("block"), IMAGE, 4, benchmark=Judge())
    shared = [row.layers for row in rows if len(row.layers) > 1]
    assert shared == [("stage1.0.conv1", "stage1.0.conv2")]
    assert len(rows) == 5


def test_known_cases_are_not_timed_again():
    model, judge = small_resnet("block"), Judge()
    first, *others = tune(model, IMAGE, 4, benchmark=Judge("padded"))
    again = tune(model, IMAGE, 4, {first.case: first}, judge)
    assert judge.held == 3 * len(others)
    assert again[0] == first
    assert {row.case for row in again} == {row.case for row in (first, *others)}


def facts(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    layers = sparse_layers(model).values()
    hooks = [len(layer._forward_pre_hooks) for layer in layers]
    gradients = [parameter.grad for parameter in model.parameters()]
    choices = [layer.choice for layer in layers]
    return tensors, modes, (hooks, gradients, choices)


def test_the_model_stays_as_it_is():
    model = small_resnet("block", norm="batch")
    model(draw(4, *IMAGE))  # statistics and choices
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()  # frozen by somebody
    tensors, modes, rest = facts(model)
    state = torch.random.get_rng_state()
    tune(model, IMAGE, 4, benchmark=Judge())
    after, modes_after, rest_after = facts(model)
    assert all(torch.equal(tensor, after[name]) for name, tensor in tensors.items())
    assert modes_after == modes
    assert rest_after == rest
    assert torch.equal(torch.random.get_rng_state(), state)


class Drawing(nn.Module):
    """Draws from the global generator, even for evaluation."""

    def forward(self, x):
        return x + torch.randn(x.shape)


def test_a_model_that_draws_leaves_no_trace():
    model = nn.Sequential(Drawing(), *sparsify(chain(), "block", 0.5))
    state = torch.random.get_rng_state()
    tune(model, (1, 6, 6), 2, benchmark=Judge())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_fails_stays_as_it_is():
    model = small_resnet("block").train()
    before = facts(model)[1:]
    with pytest.raises((RuntimeError, ValueError), match=r"channels|does not fit"):
        tune(model, (3, 8, 8), 2, benchmark=Judge())
    assert facts(model)[1:] == before


class Twice(nn.Module):
    """Runs one layer at two sizes, and a linear layer on the columns of an image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv(self.stem(x))
        x = self.conv(x[:, :, ::2]).repeat(1, 1, 2, 1)
        return self.head(self.linear(x.permute(0, 2, 3, 1).flatten(2).transpose(1, 2)[..., :8]))


def test_a_layer_that_meets_two_sizes_and_one_with_more_dimensions():
    model = sparsify(seeded(Twice()), "block", 0.5)
    assert isinstance(model.conv, SparseConv2d)
    assert isinstance(model.linear, SparseLinear)
    sizes = []
    rows = decide_layers(model, IMAGE, 5, lambda s: sizes.append(s.size) or by_rule(s))
    assert sizes == [(5, 4, 8, 8), (5, 4, 4, 8), (5 * 32, 8)]
    assert [row.layers for row in rows] == [("conv",), ("conv",), ("linear",)]
    assert tune(model, IMAGE, 5, benchmark=Judge())


def test_the_rule_without_timing():
    model = small_resnet("block", density=0.1)
    rows = decide_layers(model, IMAGE, 1, by_rule)
    for row in rows:
        layer = model.get_submodule(row.layers[0])
        weight = layer.product_weight()
        assert row.choice == rule(weight)
        assert row.case == case_of(weight, row.case.size, layer.geometry)
        assert row.milliseconds == {}


def test_nothing_to_tune(monkeypatch):
    def never(_):
        raise AssertionError("timed")

    assert tune(small_resnet(), IMAGE, 4, benchmark=never) == []
    assert tune(small_resnet("block").double(), IMAGE, 4, benchmark=never) == []
    assert tune(small_resnet("block").to("meta"), IMAGE, 4, benchmark=never) == []
    monkeypatch.setattr(native, "variant", lambda: None)
    assert tune(small_resnet("block"), IMAGE, 4, benchmark=never) == []


def test_a_tuned_model_computes_the_same():
    model = small_resnet("block", density=0.1)
    x = torch.randn(3, *IMAGE, generator=generator())
    expected = model(x)
    for best in ("dense", "padded"):
        rows = tune(model, IMAGE, 3, benchmark=Judge(best))
        set_choices(model, Choices({row.case: row.choice for row in rows}))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_a_copy_keeps_its_choices_and_a_dense_model_has_none():
    model = small_resnet("block", density=0.1)
    set_choices(model, Choices(dense=True))
    twin = copy.deepcopy(model)
    twin(draw(2, *IMAGE))
    assert {layer.choice for layer in sparse_layers(twin).values()} == {EVERYTHING_DENSE}
    assert not any(hasattr(module, "choices") for module in to_dense(model).modules())
    set_choices(twin, None)
    twin(draw(2, *IMAGE))
    assert {layer.choice for layer in sparse_layers(twin).values()} == {PADDED}


def test_real_times():
    rows = tune(small_resnet("block"), IMAGE, 2)
    assert all(
        ms > 0 for row in rows for times in row.milliseconds.values() for ms in times.values()
    )
