"""sparsify on any module: which layers, how much of each, channel pairs, and the way back."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import SCHEMES, chain, draw, generator, seeded, small_resnet
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import (
    SparseConv2d,
    SparseLayer,
    SparseLinear,
    mask_groups,
    sparsifiable,
    sparsify,
    to_dense,
)
from mest_fed.nn.state import model_spec, read_state

BLOCK_CONVOLUTIONS = {f"stage{s}.0.conv{c}" for s in (1, 2, 3) for c in (1, 2)}


def sparse_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}


def test_stem_shortcuts_norms_and_classifier_stay_dense():
    model = small_resnet("block")
    assert set(sparse_layers(model)) == BLOCK_CONVOLUTIONS
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.stage2[0].shortcut[0], nn.Conv2d)
    assert isinstance(model.norm1, nn.BatchNorm2d)
    assert type(model.classifier) is nn.Linear


def test_a_sequential_of_convolutions():
    model = sparsify(chain(), "unstructured", 0.5)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Tanh, SparseConv2d, nn.Flatten, nn.Linear]


def test_a_multilayer_perceptron_keeps_its_classifier():
    mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    sparsify(seeded(mlp), "block", 0.25)
    assert [type(mlp[i]) for i in (0, 2, 4)] == [SparseLinear, SparseLinear, nn.Linear]
    assert mlp(draw(5, 8)).shape == (5, 4)


@pytest.mark.parametrize(
    "odd",
    [
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
    ids=["grouped 1x1", "grouped", "padded by name", "reflecting"],
)
def test_convolutions_that_the_kernels_do_not_know_stay_dense(odd):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), odd, nn.Conv2d(4, 4, 3))
    assert set(sparsifiable(model)) == {"2"}


class Centred(nn.Conv2d):
    """A convolution whose weight has no mean."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Twice(nn.Linear):
    """Not an ordinary linear layer."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_may_compute_something_else_and_stays_as_it_is():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        Centred(4, 4, 3),
        nn.Flatten(),
        Twice(16, 8),
        nn.Linear(8, 8),
        Twice(8, 2),
    )
    sparsify(model, "unstructured", 1.0)
    assert [type(model[i]) for i in (1, 3, 4, 5)] == [Centred, Twice, SparseLinear, Twice]


def test_a_layer_used_in_two_places_stays_one_layer():
    shared = nn.Linear(6, 6)
    model = seeded(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 2)))
    plain = to_dense(sparsify(model, "unstructured", 0.3))
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLinear)
    assert plain[0] is plain[2]
    torch.testing.assert_close(plain(draw(3, 6)), model(draw(3, 6)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=2)),
        nn.Sequential(),
    ],
    ids=["classifier alone", "stem and classifier", "stem and grouped", "empty"],
)
def test_a_model_without_eligible_layers_is_refused(model):
    with pytest.raises(InputError, match=f"{type(model).__name__} has no layer that can be made"):
        sparsify(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blocks", 0.1), "scheme = 'blocks' is not allowed; allowed: unstructured, block"),
        (("block", 0), r"density = 0 is not allowed; allowed: a number in \(0, 1\]"),
        (("pattern", 0.5), r"density = 0\.5 is not allowed; allowed: a number in \(0, 0\.4444\]"),
        (("block", 0.1, "even"), "distribution = 'even' is not allowed; allowed: uniform, erk"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(arguments, message):
    model = small_resnet()
    with pytest.raises(InputError, match=message):
        sparsify(model, *arguments)
    assert not sparse_layers(model)  # and the model is as it was


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(deadline=None, max_examples=10)
@given(density=st.floats(0.01, 4 / 9))
def test_every_layer_has_the_density_to_the_granule(scheme, density):
    model = small_resnet(scheme, density)
    for layer in sparse_layers(model).values():
        layout = layer.layout
        assert len(layer.mask) == layout.count_for(density) == len(layer.values)
        half = layout.width / layout.num_weights / 2
        if scheme == "block:3":  # 8 and 16 channels: which strips are the incomplete ones matters
            half += 0.125 * density
        assert abs(layer.mask.density - density) <= half + 1e-9 or len(layer.mask) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("density", [0.1, 0.25, 0.4])
def test_erk_spends_the_density_over_all_layers(scheme, density):
    model = small_resnet(scheme, density, "erk")
    # Whole channels are coarse, and so are strips of 3 in 8 channels.
    error = {"channel": 0.15, "block:3": 0.06}.get(scheme, 0.01)
    assert read_state(model).density(model_spec(model)) == pytest.approx(density, rel=error)
    assert len({round(m.mask.density, 2) for m in sparse_layers(model).values()}) > 1


def test_the_first_mask_keeps_the_largest_weights():
    dense = chain()
    weight = dense[2].weight.detach().clone()
    layer = sparsify(dense, "unstructured", 0.2)[2]
    active = layer.dense_weight() != 0
    assert int(active.sum()) == round(0.2 * weight.numel())
    assert weight[active].abs().min() > weight[~active].abs().max()
    assert torch.equal(layer.dense_weight(), weight * active)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_to_dense_gives_the_same_function_and_loads_into_the_model_as_first_built(scheme, norm):
    model = small_resnet(scheme, 0.2, norm=norm)
    model(draw(6, 1, 8, 8))  # running statistics move
    plain = to_dense(model)
    assert not sparse_layers(plain)
    assert sparse_layers(model)  # a copy: the sparse one stays
    fresh = small_resnet(norm=norm)
    fresh.load_state_dict(plain.state_dict())
    x = draw(4, 1, 8, 8, seed=1)
    expected = model.eval()(x)
    torch.testing.assert_close(plain.eval()(x), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-4, atol=1e-6)


def test_to_dense_keeps_geometry_bias_and_type():
    conv = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), conv).double())
    conv = copy.deepcopy(conv)
    plain = to_dense(sparsify(model, "block", 1.0))[1]
    assert repr(plain) == repr(conv)
    assert torch.equal(plain.weight, conv.weight)
    assert torch.equal(plain.bias, conv.bias)
    assert plain.weight.dtype is torch.float64


def test_sparsify_and_back_leave_the_global_generators_alone():
    before = torch.get_rng_state()
    to_dense(sparsify(small_resnet(), "pattern", 0.1))
    to_dense(sparsify(nn.Sequential(*(nn.utils.skip_init(nn.Linear, 4, 4) for _ in range(2)))))
    assert torch.equal(torch.get_rng_state(), before)


def test_printing_tells_shape_scheme_and_density():
    assert "(8, 8, 3, 3), block, density=0.250" in repr(small_resnet("block", 0.25))


def test_channel_pairs_share_one_mask():
    model = small_resnet("channel", 0.5)
    groups = {group.name: group for group in mask_groups(model)}
    assert list(groups) == [f"stage{s}.0.conv1" for s in (1, 2, 3)]
    for group in groups.values():
        first, second = group.layers
        assert torch.equal(first.slots, second.slots)
        assert (first.layout.axis, second.layout.axis) == ("out", "in")
        assert group.values().shape[1] == first.layout.width + second.layout.width
        inactive = ~group.mask.active()
        assert not first.dense_weight()[inactive].any()
        assert not second.dense_weight()[:, inactive].any()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_inactive_channel_contributes_nothing(norm):
    model = small_resnet("channel", 0.5, norm=norm)
    x = draw(4, 1, 8, 8)
    expected = model(x)
    for block in (model.stage1[0], model.stage2[0], model.stage3[0]):
        alive = block.conv1.mask.active()
        with torch.no_grad():
            block.norm1.weight[~alive] = 7.0
            block.norm1.bias[~alive] = 5.0
    assert torch.equal(model(x), expected)
    with torch.no_grad():
        model.stage1[0].norm1.bias[model.stage1[0].conv1.mask.active()] += 5.0
    assert not torch.allclose(model(x), expected)  # an active channel does


def test_layers_that_are_no_pair_have_their_own_channels():
    model = sparsify(chain(), "channel", 0.5)
    (group,) = mask_groups(model)
    assert group.layers == (model[2],)
    rows = model[2].dense_weight().flatten(1).any(dim=1)
    assert int(rows.sum()) == 5


def test_a_pair_that_is_not_sparse_on_both_sides_is_no_pair():
    class Block(nn.Module):
        channel_pairs = (("first", "second"),)

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)  # the stem
            self.second = nn.Conv2d(4, 4, 3)

    model = sparsify(seeded(Block()), "channel", 0.5)
    assert [group.name for group in mask_groups(model)] == ["second"]
    assert model.second.layout.axis == "out"


def test_gradients_of_a_group_are_none_until_every_member_has_one():
    model = small_resnet("channel", 0.5)
    group = mask_groups(model)[0]
    assert group.gradients() is None
    model(torch.randn(4, 1, 8, 8, generator=generator())).square().sum().backward()
    assert group.gradients().shape == group.values().shape
    group.layers[1].values.grad = None
    assert group.gradients() is None
