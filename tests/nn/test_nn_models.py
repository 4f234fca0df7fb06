"""The models: counts, widths, and that one generator alone decides their bits."""

import random

import numpy as np
import pytest
import torch
from nn_cases import draw, generator, small
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import MODELS, build_model, sparsifiable

CIFAR = (3, 32, 32)
TINY = 0.25  # for the tests that go through every model


def build(name, shape=CIFAR, seed=0, **options):
    return build_model(name, shape, 10, generator=generator(seed), **options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet32_of_width_2_is_that_of_mest():
    model = build("resnet32", width=2)
    assert count(model) == 1_860_522
    layers = sparsifiable(model)
    assert sum(layer.weight.numel() for layer in layers.values()) == 1_843_200
    assert len(layers) == 30
    assert model.conv1.weight.numel() == 864
    shortcuts = [model.stage2[0].shortcut[0], model.stage3[0].shortcut[0]]
    assert [layer.weight.numel() for layer in shortcuts] == [2_048, 8_192]


def test_resnet32_for_100_classes():
    model = build_model("resnet32", CIFAR, 100, generator=generator(), width=2)
    assert count(model) == 1_872_132


def test_resnet18_is_that_of_small_images():
    model = build("resnet18")
    assert count(model) == 11_173_962
    stages = (model.stage1, model.stage2, model.stage3, model.stage4)
    assert [stage[1].conv2.out_channels for stage in stages] == [64, 128, 256, 512]
    assert len(sparsifiable(model)) == 16
    assert model.conv1.weight.shape == (64, 3, 3, 3)
    assert model.conv1.stride == (1, 1)
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    assert [stage[0].conv1.stride[0] for stage in stages] == [1, 2, 2, 2]


def test_cnn2_is_that_of_the_benchmark():
    # 32 and 64 channels, 14x14x64 -> 128 -> 10, with biases
    assert count(build("cnn2")) == 896 + 18_496 + (12_544 * 128 + 128) + 1_290
    assert set(sparsifiable(build("cnn2"))) == {"conv2", "hidden"}


@pytest.mark.parametrize(("name", "convolutions"), [("resnet8", 6), ("resnet20", 18)])
def test_depth(name, convolutions):
    assert len(sparsifiable(build(name))) == convolutions


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet20", "resnet32", "cnn2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), CIFAR])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_models_map_images_to_finite_logits(name, shape, norm):
    logits = build(name, shape, norm=norm, width=TINY)(draw(2, *shape))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("width", "channels"), [(0.5, [8, 16, 32]), (1.5, [24, 48, 96]), (0.01, [1, 1, 1])]
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_width_scales_channels(width, channels, norm):
    model = build("resnet8", width=width, norm=norm)
    stages = (model.stage1, model.stage2, model.stage3)
    assert [stage[0].conv2.out_channels for stage in stages] == channels


def test_width_scales_hidden_units():
    assert build("cnn2", width=0.25).hidden.out_features == 32


def test_group_norm_divides_the_channels():
    model = build("resnet8", width=0.75, norm="group")  # 12, 24, 48 channels
    assert next(m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)) == 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_one_generator_decides_the_bits(name):
    first, second, other = (small(name, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_global_generators_are_neither_read_nor_moved():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_before = random.getstate()
    for name in MODELS:
        small(name)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert random.getstate() == python_before


def test_initialisation_is_kaiming_fan_out_with_a_small_classifier():
    model = build("resnet20", width=2)
    conv = model.stage3[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not model.classifier.bias.any()
    assert model.norm1.weight.eq(1).all()
    assert model.norm1.running_var.eq(1).all()


def test_without_normalisation_initialisation_is_glorot_uniform():
    model = build("cnn2")
    hidden, bound = model.hidden.weight, (6 / (12_544 + 128)) ** 0.5
    assert hidden.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert hidden.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert model.classifier.weight.abs().max().item() == pytest.approx((6 / 138) ** 0.5, rel=0.01)
    bound = (6 / ((32 + 64) * 9)) ** 0.5
    assert model.conv2.weight.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert not model.classifier.bias.any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet9",
            {},
            "model.name = 'resnet9' is not allowed; allowed: resnet8, resnet18, resnet20",
        ),
        (
            "resnet8",
            {"norm": "layer"},
            "model.norm = 'layer' is not allowed; allowed: batch, group",
        ),
        ("resnet8", {"width": 0}, r"width = 0 is not allowed; allowed: a number in \(0, 16\]"),
        ("resnet8", {"width": 17.0}, r"width = 17\.0 is not allowed"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)
