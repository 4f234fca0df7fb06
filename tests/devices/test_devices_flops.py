"""Operation counts, by hand and against PyTorch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mest_fed.devices import Work, forward_flops, training_flops
from mest_fed.nn import SparseLayer, build_model, sparsify
from mest_fed.rng import torch_generator


def build(name="resnet8", **options):
    return build_model(name, (3, 16, 16), 10, generator=torch_generator(0, "test"), **options)


def two_layers():
    return nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Flatten(), nn.Linear(27, 5, bias=False))


def test_dense_by_hand():
    # Convolution: 54 weights at 3x3 positions; linear layer: 135 weights once.
    assert forward_flops(two_layers(), (2, 8, 8)) == Work(2.0 * (54 * 9 + 135), 0.0)


def test_training_spares_the_first_input_gradient():
    assert training_flops(two_layers(), (2, 8, 8)) == Work(2.0 * (2 * 54 * 9 + 3 * 135), 0.0)


def test_grouped_convolution_and_linear_over_positions():
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    assert forward_flops(grouped, (4, 5, 5)).dense_flops == 2 * 36 * 25
    rows = nn.Linear(7, 2)  # applied to each of 3 * 6 rows of 7
    assert forward_flops(rows, (3, 6, 7)).dense_flops == 2 * 14 * 18


@pytest.mark.parametrize("name", ["resnet8", "cnn2"])
def test_dense_model_agrees_with_torch(name):
    model = build(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    assert forward_flops(model, (3, 16, 16)) == Work(float(counter.get_total_flops()), 0.0)


def test_dense_training_agrees_with_torch():
    model = build("cnn2").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 16, 16)).sum().backward()
    assert training_flops(model, (3, 16, 16)).dense_flops == counter.get_total_flops()


@pytest.mark.parametrize("scheme", ["unstructured", "block", "block:8", "pattern", "channel"])
def test_sparse_counts_active_weights_only(scheme):
    model = sparsify(build(), scheme, 0.2)
    dense = forward_flops(build(), (3, 16, 16)).dense_flops
    sides = {"stage1": 16, "stage2": 8, "stage3": 4}
    active = sum(
        2 * layer.layout.active_weights(layer.slots) * sides[name.split(".")[0]] ** 2
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    )
    work = forward_flops(model, (3, 16, 16))
    assert work.sparse_flops == active
    assert 0 < work.dense_flops < dense / 3
    # The stem is dense and the first; every sparse layer is counted three times.
    assert training_flops(model, (3, 16, 16)).sparse_flops == 3 * active


def test_padding_of_an_incomplete_strip_is_not_counted():
    conv = nn.Conv2d(3, 6, 3, padding=1)  # strips of 4 channels: the second holds 2
    model = sparsify(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), conv), "block", 1.0)
    assert forward_flops(model, (3, 4, 4)).sparse_flops == 2 * 6 * 27 * 16


def test_the_model_is_left_as_it_was():
    model = build()
    model.stage1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    forward_flops(model, (3, 16, 16))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_go_even_if_the_model_fails():
    model = build()
    with pytest.raises(RuntimeError):
        forward_flops(model, (5, 16, 16))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore::mest_fed.errors.DensityWarning")
def test_attention_recurrent_and_1d_layers_by_hand():
    line = nn.Conv1d(2, 4, 3)  # 24 weights at 6 positions
    assert forward_flops(line, (2, 8)) == Work(2.0 * 24 * 6, 0.0)
    lstm = nn.LSTM(3, 5, batch_first=True)  # 4 gates of 5 x (3 + 5) weights, 7 steps
    assert forward_flops(lstm, (7, 3)) == Work(2.0 * 160 * 7, 0.0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(8, 4))
    weights = 4 * 64 + 2 * 128  # projections, and both linear layers; 5 steps
    assert forward_flops(model, (5, 8)) == Work(2.0 * (weights + 32) * 5, 0.0)
    sparsify(model, "unstructured", 0.5)
    assert forward_flops(model, (5, 8)) == Work(2.0 * 32 * 5, 2.0 * weights / 2 * 5)
    sparsify(model := nn.Sequential(layer_of(8), nn.Linear(8, 4)), exclude=["*.in_proj"])
    dense = forward_flops(model, (5, 8)).dense_flops
    assert dense == 2.0 * (192 + 32) * 5


def layer_of(features):
    return nn.TransformerEncoderLayer(features, 2, 16, batch_first=True)
