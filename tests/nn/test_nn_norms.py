"""Normalisation that takes residual and ReLU along, and dense convolutions of few columns."""

import copy

import pytest
import torch
from nn_cases import draw, generator
from torch import nn

from mest_fed.kernels import native
from mest_fed.nn.dense import Conv2d
from mest_fed.nn.norms import BatchNorm2d, GroupNorm

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")
KINDS = {
    "batch": lambda: (BatchNorm2d(6), nn.BatchNorm2d(6)),
    "no momentum": lambda: (BatchNorm2d(6, momentum=None), nn.BatchNorm2d(6, momentum=None)),
    "epsilon": lambda: (
        BatchNorm2d(6, eps=0.1, momentum=0.7),
        nn.BatchNorm2d(6, eps=0.1, momentum=0.7),
    ),
    "no statistics": lambda: (
        BatchNorm2d(6, track_running_stats=False),
        nn.BatchNorm2d(6, track_running_stats=False),
    ),
    "bare": lambda: (BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, affine=False)),
    "group": lambda: (GroupNorm(3, 6), nn.GroupNorm(3, 6)),
    "layer": lambda: (GroupNorm(1, 6), nn.GroupNorm(1, 6)),
    "bare group": lambda: (GroupNorm(2, 6, affine=False), nn.GroupNorm(2, 6, affine=False)),
}
SHAPE = (4, 6, 5, 7)
EVERY = pytest.mark.parametrize("kind", KINDS)
BEHIND = pytest.mark.parametrize(
    ("relu", "residual"), [(False, False), (True, False), (False, True), (True, True)]
)


def pair(kind):
    """Return this package's layer and torch's, with the same drawn parameters."""
    ours, torchs = KINDS[kind]()
    source = generator(7)
    for parameter in torchs.parameters():
        parameter.data.normal_(0, 1, generator=source)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def ran(monkeypatch):
    """Count the calls of the compiled normalisation."""
    calls = []
    original = native.module

    def counted():
        calls.append(1)
        return original()

    monkeypatch.setattr(native, "module", counted)
    return calls


def step(norm, x, residual, relu):
    """Return output and gradients; torch's own layers add and cut outside."""
    leaves = [t.clone().requires_grad_() for t in (x, residual) if t is not None]
    second = leaves[1] if residual is not None else None
    if isinstance(norm, (BatchNorm2d, GroupNorm)):
        y = norm(leaves[0], second, relu)
    else:
        y = norm(leaves[0])
        y = y if second is None else y + second
        y = y.relu() if relu else y
    leaves += list(norm.parameters())
    upstream = draw(*x.shape, seed=9, dtype=x.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@EVERY
@BEHIND
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch(kind, relu, residual, fused):
    ours, torchs = pair(kind)
    ours.fused = fused
    for seed in range(3):
        x = draw(*SHAPE, seed=seed) * (1 + seed) + seed
        other = draw(*SHAPE, seed=20 + seed) if residual else None
        close(step(ours, x, other, relu), step(torchs, x, other, relu))
        close(dict(ours.state_dict()), dict(torchs.state_dict()))
    ours.eval(), torchs.eval()
    close(step(ours, x, other, relu), step(torchs, x, other, relu))
    close(dict(ours.state_dict()), dict(torchs.state_dict()))


@EVERY
def test_state_has_the_keys_of_torch(kind):
    ours, torchs = pair(kind)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, value in ours.state_dict().items():
        assert value.dtype == torchs.state_dict()[name].dtype, name


@compiled
@pytest.mark.parametrize("kind", ["batch", "no momentum", "no statistics", "group", "layer"])
def test_float32_on_a_cpu_is_fused(kind, monkeypatch):
    calls = ran(monkeypatch)
    ours, _ = pair(kind)
    step(ours, draw(*SHAPE), None, True)
    assert len(calls) == 2  # forward, backward
    ours.fused = False
    step(ours, draw(*SHAPE), None, True)
    assert len(calls) == 2


@EVERY
def test_double_falls_back(kind, monkeypatch):
    calls = ran(monkeypatch)
    ours, torchs = (norm.double() for norm in pair(kind))
    x, other = draw(*SHAPE, dtype=torch.float64), draw(*SHAPE, seed=1, dtype=torch.float64)
    for a, b in zip(step(ours, x, other, True), step(torchs, x, other, True), strict=True):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)
    assert not calls


@pytest.mark.parametrize("kind", ["batch", "no momentum"])
def test_a_running_batch_norm_is_not_fused_in_evaluation(kind, monkeypatch):
    calls = ran(monkeypatch)
    ours, _ = pair(kind)
    ours.eval()
    before = copy.deepcopy(ours.state_dict())
    ours(draw(*SHAPE), draw(*SHAPE, seed=1), True)
    close(dict(ours.state_dict()), dict(before))
    assert not calls


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (2, 6, 5), (2, 6), (2, 6, 2, 2, 2)])
def test_what_batch_norm_refuses_is_refused_in_its_words(shape):
    ours, torchs = pair("batch")
    with pytest.raises(ValueError) as expected:  # noqa: PT011 - the words are what is compared
        torchs(draw(*shape))
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        ours(draw(*shape))
    assert str(refused.value) == str(expected.value)


@compiled
def test_other_channels_are_refused():
    for kind in ("batch", "group"):
        ours, _ = pair(kind)
        with pytest.raises((ValueError, RuntimeError)):
            ours(draw(2, 9, 4, 4))
    with pytest.raises(ValueError, match="residual"):
        ours(draw(*SHAPE), draw(*SHAPE[:3], 1))


def test_group_norm_of_no_image_has_no_image():
    ours, torchs = pair("group")
    x = draw(0, 6, 4, 4)
    assert ours(x).shape == torchs(x).shape


def test_group_norm_takes_planes_of_any_dimension():
    ours, torchs = pair("group")
    for shape in ((3, 6), (3, 6, 5), (3, 6, 2, 3, 4)):
        x, other = draw(*shape), draw(*shape, seed=1)
        close(step(ours, x, other, True), step(torchs, x, other, True))


@EVERY
def test_a_copy_is_a_layer_of_its_own(kind):
    ours, torchs = pair(kind)
    x = draw(*SHAPE)
    other = copy.deepcopy(ours)
    step(ours, x, None, True)
    if "running_mean" in ours.state_dict():
        assert int(other.num_batches_tracked) == 0
        assert not torch.equal(other.running_mean, ours.running_mean)
    close(step(other, x, None, True), step(torchs, x, None, True))
    other.fused = False
    assert ours.fused


def test_gradients_of_the_parameters_alone():
    for kind in ("batch", "group"):
        ours, torchs = pair(kind)
        results = []
        for norm in (ours, torchs):
            y = norm(draw(*SHAPE))
            results.append(torch.autograd.grad(y, norm.parameters(), draw(*SHAPE, seed=2)))
        close(*results)


def test_frozen_parameters_leave_the_gradient_of_the_input():
    ours, torchs = pair("batch")
    results = []
    for norm in (ours, torchs):
        norm.requires_grad_(False)
        x = draw(*SHAPE).requires_grad_()
        results.append(torch.autograd.grad(norm(x), x, draw(*SHAPE, seed=2)))
    close(*results)


CONVOLUTIONS = {
    "stem": ((3, 32, 3), {"padding": 1, "bias": False}),
    "shortcut": ((32, 64, 1), {"stride": 2, "bias": False}),
    "odd channels": ((3, 7, 3), {"padding": 1}),
    "bias": ((5, 8, 2), {"padding": (1, 0), "dilation": 2}),
    "one": ((1, 1, 1), {}),
    "largest": ((64, 12, 1), {}),
}
MANY = {
    "columns": ((8, 8, 3), {"padding": 1}),
    "groups": ((4, 8, 3), {"groups": 2}),
    "reflection": ((3, 8, 3), {"padding": 1, "padding_mode": "reflect"}),
    "same": ((3, 8, 3), {"padding": "same"}),
}


def convolutions(case):
    """Return this package's layer and torch's, with the same drawn parameters."""
    sizes, options = {**CONVOLUTIONS, **MANY}[case]
    ours, torchs = Conv2d(*sizes, **options), nn.Conv2d(*sizes, **options)
    source = generator(3)
    for parameter in torchs.parameters():
        parameter.data.normal_(0, 1, generator=source)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def convolve(layer, x):
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    y = layer(leaves[0])
    upstream = draw(*y.shape, seed=5).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", [*CONVOLUTIONS, *MANY])
def test_convolutions_are_those_of_torch(case, fused, batch):
    ours, torchs = convolutions(case)
    ours.fused = fused
    x = draw(batch, ours.in_channels, 9, 14)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    expected = convolve(copy.deepcopy(torchs).double(), x.double())
    for a, b in zip(convolve(ours, x), expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


def sparse_calls(layer, x, monkeypatch):
    """Count the calls of the sparse kernels."""
    calls = ran(monkeypatch)
    convolve(layer, x)
    return len(calls)


@compiled
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_few_columns_are_computed_by_the_sparse_kernels(case, monkeypatch):
    ours, _ = convolutions(case)
    x = draw(2, ours.in_channels, 9, 9)
    assert sparse_calls(ours, x, monkeypatch) == 2


@pytest.mark.parametrize("case", MANY)
def test_other_convolutions_are_those_of_torch_to_the_bit(case, monkeypatch):
    ours, torchs = convolutions(case)
    x = draw(2, ours.in_channels, 9, 9)
    assert sparse_calls(ours, x, monkeypatch) == 0
    for a, b in zip(convolve(ours, x), convolve(torchs, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_in_double_falls_back(case, monkeypatch):
    ours, torchs = (layer.double() for layer in convolutions(case))
    x = draw(2, ours.in_channels, 9, 9, dtype=torch.float64)
    assert sparse_calls(ours, x, monkeypatch) == 0
    for a, b in zip(convolve(ours, x), convolve(torchs, x), strict=True):
        assert torch.equal(a, b)


def test_inputs_that_torch_convolves_are_convolved():
    ours, torchs = convolutions("stem")
    for shape in ((3, 9, 9), (2, 4, 9, 9), (0, 3, 9, 9), (2, 3, 0, 9)):
        x = draw(*shape)
        try:
            expected = torchs(x).shape
        except RuntimeError:
            with pytest.raises((RuntimeError, ValueError)):
                ours(x)
        else:
            assert ours(x).shape == expected
