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
    """Return a network whose weights are mostly in layers that stay dense."""
    layers, valid = [nn.Conv2d(3, 16, 3)], {"padding": "valid"}
    for _ in range(2):
        layers += [nn.Conv2d(16, 64, 1, **valid), nn.Conv2d(64, 64, 3, groups=64)]
        layers += [nn.Conv2d(64, 16, 1, **valid)]
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
        ("2", 64, 16, None),
        ("3", 288, 288, Reason.GROUPED),
        ("4", 576, 576, Reason.PADDING),
        ("5", 576, 576, Reason.PADDING),
        ("8", 64, 64, Reason.DTYPE),
        ("9", 64, 64, Reason.KEPT),
        ("10.in_proj", 192, 48, None),
        ("10.out_proj", 64, 16, None),
        ("11", 32, 32, Reason.HEAD),
    ]
    assert rows[1] == LayerDensity("1", "SparseConv2d", 576, 144, None)
    assert rows[1].density == 0.25
    assert whole_density(rows) == pytest.approx((2712 - 432 - 240) / 2712)


def test_a_shared_weight_is_counted_once():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10))
    model[2].weight = model[0].weight
    rows = layer_densities(model)
    assert [(row.weights, row.reason) for row in rows] == [
        (80, Reason.KIND),
        (64, Reason.ELIGIBLE),
        (0, Reason.HEAD),
    ]


def test_a_parameter_in_no_layer_has_a_row_of_its_own():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Embedding(5, 4), nn.ReLU()))
    model.append(nn.Linear(8, 2))
    model.queries = nn.Parameter(torch.zeros(3, 8))
    model[1].positions = nn.Parameter(torch.zeros(6, 4))
    model.scale = nn.Parameter(torch.zeros(8))  # no weight: of one dimension
    rows = {row.name: (row.weights, row.reason) for row in layer_densities(model)}
    assert rows["queries"] == (24, Reason.PARAMETER)
    assert rows["1.positions"] == (24, Reason.PARAMETER)
    assert rows["1.0"] == (20, Reason.KIND)
    assert set(rows) == {"queries", "0", "1.positions", "1.0", "2"}


def test_keeping_a_module_keeps_everything_in_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8))
    model.append(nn.Linear(8, 2))
    sparsify(model, "block", 0.5, keep_dense=["0"])
    sparse = [name for name, it in model.named_modules() if isinstance(it, SparseLayer)]
    assert sparse == ["1"]
    with pytest.raises(InputError, match="keep_dense = 'nine' matches no module"):
        sparsify(model, keep_dense=["nine"])


def deep():
    """Return a stem, an encoder of three layers, and a head."""
    encoder = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("query", "key", "value")})
    parts = {"stem": nn.Linear(8, 16), **encoder, "head": nn.Linear(16, 4)}
    model = nn.Sequential()
    model.add_module("stem", parts["stem"])
    model.add_module("encoder", nn.Sequential())
    for name in encoder:
        model.encoder.add_module(name, parts[name])
    model.add_module("head", parts["head"])
    return seeded(model)


def sparse_names(model):
    return [row.name for row in layer_densities(model) if row.reason is None]


@pytest.mark.parametrize(
    ("include", "exclude", "sparse"),
    [
        ((), ("encoder.key",), ["stem", "encoder.query", "encoder.value"]),
        ((), ("encoder",), ["stem"]),
        ((), ("*e*y",), ["stem", "encoder.value"]),
        (("encoder",), (), ["encoder.query", "encoder.key", "encoder.value"]),
        (("*.query", "stem"), (), ["stem", "encoder.query"]),
        (("encoder.*",), ("*.value",), ["encoder.query", "encoder.key"]),
        ("encoder.*", "*.value", ["encoder.query", "encoder.key"]),
    ],
)
def test_patterns_say_which_layers_may_be_sparse(include, exclude, sparse):
    model = deep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DensityWarning)
        sparsify(model, "block", 0.5, include=include, exclude=exclude)
    assert sparse_names(model) == sparse


def test_including_a_layer_that_cannot_be_sparse_is_refused():
    with pytest.raises(InputError, match=r"include = 'head\*' .* head stays dense \(head"):
        sparsify(deep(), "block", 0.5, include=["encoder.*", "head*"])


def test_the_table_says_why_a_layer_is_not_chosen():
    rows = layer_densities(deep(), include=["encoder"], exclude=["*.key"])
    assert {row.name: row.reason for row in rows} == {
        "stem": Reason.NOT_INCLUDED,
        "encoder.query": Reason.ELIGIBLE,
        "encoder.key": Reason.KEPT,
        "encoder.value": Reason.ELIGIBLE,
        "head": Reason.HEAD,
    }


@pytest.mark.parametrize("key", ["include", "exclude", "keep_dense", "layers"])
def test_a_pattern_that_names_nothing_is_refused_in_one_line(key):
    given = {"decoder.*": 0.5} if key == "layers" else ["decoder.*"]
    model = deep()
    with pytest.raises(
        InputError, match=rf"^{key} = 'decoder\.\*' matches no module .* encoder\.query, "
    ):
        sparsify(model, "block", 0.5, **{key: given})
    assert not sparse_names(model)


def test_a_layer_may_have_a_density_of_its_own():
    model = sparsify(deep(), "unstructured", 0.25, layers={"*.key": 0.75, "encoder": 0.5})
    rows = {row.name: row.density for row in layer_densities(model) if row.reason is None}
    assert rows == {
        "stem": 0.25,
        "encoder.query": 0.5,
        "encoder.key": 0.75,  # the first pattern that names it decides
        "encoder.value": 0.5,
    }


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"head": 0.5}, r"layers = 'head' is not allowed; .* head stays dense \(head"),
        ({"stem": 0}, r"density of stem = 0\.0 is not allowed; allowed: a number in \(0, 1\]"),
        ({"stem": 1.5}, r"density of stem = 1\.5 is not allowed"),
        ({"stem": "much"}, "distribution = 'uniform, stem:much' is not allowed"),
    ],
)
def test_a_density_that_no_layer_can_have_is_refused(layers, message):
    with pytest.raises(InputError, match=message):
        sparsify(deep(), "unstructured", 0.25, layers=layers)


def test_a_density_for_a_layer_that_shares_its_mask_is_refused():
    model = build_model("resnet8", (3, 8, 8), 10, generator=generator(), width=0.5)
    with pytest.raises(InputError, match=r"allowed: stage1\.0\.conv1, whose mask .*conv2 shares"):
        sparsify(model, "channel", 0.5, layers={"stage1.0.conv2": 0.25})
    sparsify(model, "channel", 0.5, layers={"stage1": 0.25})
    assert len(model.stage1[0].conv2.slots) == len(model.stage1[0].conv1.slots) == 2


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
    assert "4096 in 1 and 3 more (padding by name, or not by zeros)" in text
    assert "1152 in 2 and 1 more (grouped convolution)" in text
    assert text.index("padding") < text.index("grouped") < text.index("head") < text.index("stem")


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
