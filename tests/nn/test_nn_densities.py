"""How dense a model is as a whole: the table of its layers, and the warning of sparsify."""

import warnings

import pytest
import torch
from nn_cases import generator, seeded
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import (
    DensityWarning,
    LayerDensity,
    Reason,
    SparseLayer,
    build_model,
    layer_densities,
    sparsify,
    whole_density,
)


def bottlenecks():
    """Return a network of 3x3 convolutions between 1x1 ones that hold most of its weights."""
    layers = [nn.Conv2d(3, 16, 3)]
    for _ in range(2):
        layers += [nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 16, 1)]
        layers += [nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)]
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)))


def test_every_layer_stands_in_the_table_with_its_reason():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8, 8, dtype=torch.complex64),
        nn.Linear(8, 8),
        nn.MultiheadAttention(8, 2),
        nn.Linear(8, 4),
    )
    with pytest.warns(DensityWarning):
        sparsify(model, "unstructured", 0.25, keep_dense=["9"])
    rows = layer_densities(model, keep_dense=["9"])
    assert [(row.name, row.weights, row.active, row.reason) for row in rows] == [
        ("0", 216, 216, Reason.STEM),
        ("1", 576, 144, None),
        ("2", 64, 64, Reason.POINTWISE),
        ("3", 288, 288, Reason.GROUPED),
        ("4", 576, 576, Reason.PADDING),
        ("5", 576, 576, Reason.PADDING),
        ("8", 64, 64, Reason.DTYPE),
        ("9", 64, 64, Reason.KEPT),
        ("10", 192, 192, Reason.KIND),
        ("10.out_proj", 64, 64, Reason.SUBCLASS),
        ("11", 32, 32, Reason.HEAD),
    ]
    assert rows[1] == LayerDensity("1", "SparseConv2d", 576, 144, None)
    assert rows[1].density == 0.25
    assert whole_density(rows) == pytest.approx((2712 - 432) / 2712)


def test_a_shared_weight_is_counted_once():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10))
    model[2].weight = model[0].weight
    rows = layer_densities(model)
    assert [(row.weights, row.reason) for row in rows] == [
        (80, Reason.KIND),
        (64, Reason.ELIGIBLE),
        (0, Reason.HEAD),
    ]


def test_keeping_a_module_keeps_everything_in_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8))
    model.append(nn.Linear(8, 2))
    sparsify(model, "block", 0.5, keep_dense=["0"])
    sparse = [name for name, it in model.named_modules() if isinstance(it, SparseLayer)]
    assert sparse == ["1"]
    with pytest.raises(InputError, match="keep_dense = 'nine' is not allowed"):
        sparsify(model, keep_dense=["nine"])


def test_one_warning_says_how_dense_the_whole_is_and_why():
    model = bottlenecks()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparsify(model, "unstructured", 0.1)
    (warning,) = caught
    assert warning.category is DensityWarning
    assert warning.filename == __file__
    weights = 432 + 2 * (1024 + 576 + 1024 + 2304) + 640
    dense = weights - 2 * 2304
    whole = (dense + 2 * 230) / weights
    text = str(warning.message)
    assert "\n" not in text
    assert f"at density 0.1, and has {whole:.2f} as a whole" in text
    assert f"{dense} of {weights} weights stay dense" in text
    assert "4096 in 1 and 3 more (1x1 convolution)" in text
    assert "1152 in 2 and 1 more (grouped convolution)" in text
    assert text.index("1x1") < text.index("grouped") < text.index("head") < text.index("stem")


def test_a_density_that_is_not_far_off_needs_no_word():
    sparsify(bottlenecks(), "unstructured", 0.6)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet20", "resnet32", "cnn2", "mlp"])
@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize("density", [0.02, 0.1])
def test_models_of_ours_are_about_as_sparse_as_they_are_called(name, width, density):
    if name == "resnet18":
        width /= 4
    model = build_model(name, (3, 16, 16), 10, generator=generator(), width=width)
    sparsify(model, "block", density)
    assert whole_density(layer_densities(model)) < density + 0.1
