"""Sparse layers under autocast, and in torch's own containers, against the dense model."""

import pytest
import torch
from nn_cases import SCHEMES, draw, generator, seeded
from torch import nn

from mest_fed.nn import SparseLayer, Sparsity, build_model, sparsify, to_dense
from mest_fed.nn.slots import gathered

LABELS = torch.tensor([0, 1, 2, 0, 1])
TYPES = [torch.bfloat16, torch.float16]


def linear():
    layers = (nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    return seeded(nn.Sequential(*layers)), draw(5, 16)


def convolutional():
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten())
    return seeded(nn.Sequential(*layers, nn.Linear(64, 4))), draw(5, 3, 8, 8)


def step(model, x, dtype, inside):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        loss = nn.functional.cross_entropy(y, LABELS)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return y, x.grad


def close(ours, expected):
    assert ours.dtype is expected.dtype
    scale = expected.abs().max().item()
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.03 * scale)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("build", [linear, convolutional])
def test_a_step_is_that_of_the_dense_model(build, scheme, dtype, inside):
    model, x = build()
    sparsify(model, scheme, 0.4)
    plain = to_dense(model)
    (ours, ours_dx), (expected, expected_dx) = (
        step(net, x, dtype, inside) for net in (model, plain)
    )
    assert ours.dtype is dtype
    close(ours, expected)
    close(ours_dx, expected_dx)
    for layer, twin in zip(model, plain, strict=True):
        if isinstance(layer, SparseLayer):
            close(layer.values.grad, gathered(layer.layout, twin.weight.grad, layer.slots))
            close(layer.bias.grad, twin.bias.grad)


def test_autocast_leaves_double_precision_alone():
    model, x = linear()
    model, x = sparsify(model.double(), "block", 0.4), x.double()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", ["resnet8", "cnn2"])
def test_models_of_ours_under_autocast(name):
    options = {"generator": generator(), "width": 0.5, "sparsity": Sparsity("block", 0.3)}
    model = build_model(name, (3, 8, 8), 4, **options)
    plain = to_dense(model)
    x = draw(5, 3, 8, 8)
    (ours, _), (expected, _) = (step(net, x, torch.bfloat16, False) for net in (model, plain))
    close(ours, expected)
    close(model.conv1.weight.grad, plain.conv1.weight.grad)


def test_a_dense_gradient_is_kept_in_the_type_of_the_values():
    model, x = linear()
    sparsify(model, "block", 0.4)
    model[2].keep_dense_gradient = True
    step(model, x, torch.bfloat16, False)
    assert model[2].dense_gradient.dtype is torch.float32


# torch says in evaluation that nested tensors, which it then takes, are a prototype.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore::mest_fed.nn.DensityWarning")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformers_answer_as_the_dense_ones_whatever_path_torch_takes(activation, norm_first):
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True, activation=activation, norm_first=norm_first
    )
    nested = {} if not norm_first else {"enable_nested_tensor": False}
    model = seeded(nn.Sequential(nn.TransformerEncoder(layer, 2, **nested), nn.Linear(16, 3)))
    sparsify(model, "block", 0.3)
    encoder, plain = model[0], to_dense(model)[0]
    assert isinstance(encoder.layers[0].linear2, SparseLayer)
    x, lengths = draw(3, 5, 16), torch.tensor([5, 3, 1])
    padding = torch.arange(5) >= lengths[:, None]
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    cases = ({}, {"src_key_padding_mask": padding}, {"mask": causal})
    for train in (True, False):
        encoder.train(train)
        plain.train(train)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                for options in cases:
                    ours, expected = encoder(x, **options), plain(x, **options)
                    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
