"""The global model: nested tiers, mutation, cuts, and masks that clients changed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from server_parts import (
    SCHEMES,
    column,
    dense_and_held,
    line_model,
    line_spec,
    line_state,
    random_masks,
    random_state,
    spec_for,
)

from mest_fed.nn import build_model, model_spec, read_state, sparsify
from mest_fed.server.aggregation.masked import MaskedMean, PositionCache
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.optimizers import ServerOptimizer
from mest_fed.sparsity import DISTRIBUTIONS, Mask, build_method, layer_counts, layout_for
from mest_fed.sparsity.mask import keep_best
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.wire import check_masks

TARGET = 0.2
PATH = (1, "growth", 7)


def model_of(scheme, density=TARGET, distribution="uniform", seed=0):
    """Return a model whose active counts are those of a density."""
    spec = spec_for(scheme)
    layouts = {group: spec.group_layout(group) for group in spec.groups}
    counts = layer_counts(layouts, density, distribution)
    every = random_state(spec, 1.0, seed)
    masks = {}
    for group, layout in layouts.items():
        mask = Mask(layout, every.masks[group])
        scores = np.random.default_rng(seed).random(len(mask))
        masks[group] = keep_best(mask, scores, counts[group]).slots
    return GlobalModel.from_state(spec, random_state(spec, seed=seed, masks=masks))


def apply_update(model, *clients):
    mean = MaskedMean(model.spec, PositionCache(model.spec))
    for state, examples in clients:
        mean.add(state, examples)
    model.apply_update(mean, ServerOptimizer())


def sizes(masks):
    return {group: len(slots) for group, slots in masks.items()}


def assert_within(small, large):
    for group, slots in small.items():
        assert np.isin(slots, large[group]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_goes_in_and_out(scheme):
    spec = spec_for(scheme)
    state = random_state(spec, 0.3)
    back = GlobalModel.from_state(spec, state).state()
    for group, slots in state.masks.items():
        np.testing.assert_array_equal(back.masks[group], slots)
    for layer, values in state.values.items():
        np.testing.assert_array_equal(back.values[layer], values)
    np.testing.assert_array_equal(back.dense["bias"], state.dense["bias"])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=10, deadline=None)
@given(shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_tiers_are_nested_at_exact_counts(scheme, distribution, shares, seed):
    model = model_of(scheme, TARGET, distribution, seed)
    layouts = {group: model.spec.group_layout(group) for group in model.spec.groups}
    larger = model.masks
    for share in sorted({1.0, *shares}, reverse=True):
        tier = model.tier_masks(TARGET * share, distribution)
        check_masks(tier, model.spec)
        assert sizes(tier) == layer_counts(layouts, TARGET * share, distribution)
        assert_within(tier, larger)
        larger = tier


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
def test_the_tier_of_the_target_density_is_the_whole_mask(scheme, distribution):
    generator = torch.Generator().manual_seed(0)
    net = build_model("resnet8", (1, 8, 8), 10, generator=generator, width=0.5)
    sparsify(net, scheme, TARGET, distribution)
    model = GlobalModel.from_state(model_spec(net), read_state(net))
    assert sizes(model.tier_masks(TARGET, distribution)) == sizes(model.masks)


def test_a_tier_holds_the_largest_weights():
    model = line_model({0: 0.1, 1: -5.0, 2: 0.3, 3: 4.0}, weights=4)
    assert model.tier_masks(0.5, "uniform")["w"].tolist() == [1, 3]


def test_a_pair_is_ranked_by_both_of_its_layers():
    spec = spec_for("pair")
    state = random_state(spec, 1.0)
    state.values = {name: np.zeros_like(values) for name, values in state.values.items()}
    state.values["a"][2] = 1.0
    state.values["b"][5] = 2.0
    state.values["b"][2] = 0.1
    tier = GlobalModel.from_state(spec, state).tier_masks(0.125, "uniform")
    assert tier["a"].tolist() == [2, 5]


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pair"])
def test_every_tier_gets_its_share_of_the_grown(scheme):
    model = model_of(scheme, 0.5)
    apply_update(model, (model.state(), 1))
    model.mutate(build_method("mest-em", 0.5), 0.0, ServerOptimizer(), PATH)
    for share in (0.5, 0.25):
        tier = model.tier_masks(0.5 * share, "uniform")
        for group, born in model.grown.items():
            want = len(born) * len(tier[group]) / len(model.masks[group])
            assert abs(np.isin(tier[group], born).sum() - want) <= 1


def test_a_soft_bound_gives_every_tier_the_same_share_more():
    model = model_of("unstructured")
    small = sizes(model.tier_masks(TARGET / 4, "uniform"))
    model.mutate(build_method("mest-ems", TARGET), 0.0, ServerOptimizer(), PATH)
    for group, count in sizes(model.tier_masks(TARGET / 4, "uniform")).items():
        assert abs(count - 1.5 * small[group]) <= 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("method", "progress", "ceiling"),
    [
        ("static", 0.0, 1.0),
        ("set", 0.1, 1.0),
        ("mest-em", 0.0, 1.0),
        ("mest-em", 0.6, 1.0),
        ("mest-ems", 0.0, 1.5),
        ("mest-ems", 0.6, 1.25),
        ("mest-ems", 0.8, 1.0),
    ],
)
def test_mutation_goes_to_its_ceiling(scheme, method, progress, ceiling):
    model = model_of(scheme)
    targets = sizes(model.masks)
    for number in range(3):
        before = {group: slots.copy() for group, slots in model.masks.items()}
        path = (1, "growth", number)
        model.mutate(build_method(method, TARGET), progress, ServerOptimizer(), path)
        check_masks(model.masks, model.spec)
        for group, count in sizes(model.masks).items():
            layout = model.spec.group_layout(group)
            assert count == min(layout.num_granules, round(targets[group] * ceiling))
            gone = np.setdiff1d(before[group], model.masks[group])
            # nothing that was just dropped comes back in another variant
            assert not np.isin(gone // layout.variants, model.masks[group] // layout.variants).any()
            fresh = np.setdiff1d(model.masks[group], before[group])
            np.testing.assert_array_equal(np.sort(model.grown[group]), fresh)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_after_mutation_inactive_and_grown_weights_are_zero(scheme):
    model = model_of(scheme)
    before = {layer: weights.copy() for layer, weights in model.weights.items()}
    model.mutate(build_method("mest-em", TARGET), 0.0, ServerOptimizer(), PATH)
    state = model.state()
    for layer, weights in model.weights.items():
        _, active = dense_and_held(model.spec, state, layer)
        born = model.grown[model.spec.group_of(layer)]
        assert len(born) > 0
        positions = model.spec.layouts[layer].positions(born).ravel()
        active[positions[positions < len(active)]] = False
        assert not weights[~active].any()
        np.testing.assert_array_equal(weights[active], before[layer][active])


def test_mutation_is_drawn_from_its_path():
    def masks(*path):
        model = model_of("unstructured")
        model.mutate(build_method("set", TARGET), 0.0, ServerOptimizer(), path)
        return model.masks["a"].tolist()

    assert masks(1, "growth", 3) == masks(1, "growth", 3)
    assert masks(1, "growth", 3) != masks(1, "growth", 4)
    assert masks(1, "growth", 3) != masks(2, "growth", 3)


@pytest.mark.parametrize(("gradient_weight", "dropped"), [(0.0, 4), (0.5, 3)])
def test_importance_adds_the_pseudo_gradient(gradient_weight, dropped):
    # |w| = 5, 4, 3, 2, 1 after the round. |g| = 4 at the last alone: 1 + 0.5 * 4 = 3 beats 2.
    model = line_model({0: 5.0, 1: 4.0, 2: 3.0, 3: 2.0, 4: 5.0}, weights=8)
    apply_update(model, (line_state({4: 1.0}), 3))
    method = build_method("mest-em", 0.5, gradient_weight)
    model.mutate(method, 0.0, ServerOptimizer(), PATH)
    assert sorted({0, 1, 2, 3, 4} - set(model.masks["w"].tolist())) == [dropped]


def test_cut_to_target_drops_the_smallest():
    model = line_model({0: 3.0, 1: 0.1, 2: 2.0}, weights=4)
    model.targets = {"w": 2}
    model.cut_to_target(ServerOptimizer())
    assert model.masks["w"].tolist() == [0, 2]
    assert model.weights["w"].tolist() == [3.0, 0.0, 2.0, 0.0]
    model.cut_to_target(ServerOptimizer())
    assert model.masks["w"].tolist() == [0, 2]


def test_masks_that_clients_grew_are_adopted_by_magnitude():
    model = line_model({0: 1.0, 1: 0.1}, weights=4)
    apply_update(model, (line_state({0: 1.0, 2: 0.5}), 1), (line_state({0: 1.0, 3: -0.2}), 1))
    model.adopt_masks(ServerOptimizer())
    assert model.masks["w"].tolist() == [0, 2]
    assert model.grown["w"].tolist() == [2]
    np.testing.assert_allclose(model.weights["w"], [1.0, 0.0, 0.5, 0.0])


def feddst_of_the_authors(clients, target):
    """Transcribe the aggregation of the authors' ``dst.py`` for one layer of dense arrays."""
    weights = sum(examples * values * mask for values, mask, examples in clients)
    votes = sum(examples * mask.astype(np.float64) for _, mask, examples in clients)
    mean = np.divide(weights, votes, out=np.zeros_like(weights), where=votes > 0)
    order = np.argsort(-np.abs(mean), kind="stable")[:target]
    return np.sort(order), np.where(np.isin(np.arange(len(mean)), order), mean, 0)


@pytest.mark.parametrize("seed", range(5))
def test_unlike_masks_are_averaged_and_pruned_as_feddst_does(seed):
    draw, size, target = np.random.default_rng(seed), 40, 8
    clients = []
    for examples in (3, 11, 7):
        mask = np.isin(np.arange(size), draw.choice(size, target, replace=False))
        clients.append((draw.normal(size=size) * mask, mask, examples))
    model = line_model(dict.fromkeys(range(target), 1.0), weights=size)
    states = [
        (line_state({slot: values[slot] for slot in np.flatnonzero(mask)}), examples)
        for values, mask, examples in clients
    ]
    mean = MaskedMean(model.spec, PositionCache(model.spec))
    for state, examples in states:
        mean.add(state, examples, offered=dict(model.masks))
    model.apply_update(mean, ServerOptimizer())
    model.adopt_masks(ServerOptimizer())
    slots, weights = feddst_of_the_authors(clients, target)
    assert model.masks["w"].tolist() == slots.tolist()
    np.testing.assert_allclose(model.weights["w"], weights, rtol=1e-6)


def test_a_granule_that_no_client_sent_is_not_adopted():
    # Both active weights are zero, yet they stayed; 2 and 3 are zero because no client held them.
    model = line_model({0: 0.0, 1: 0.0}, weights=4)
    apply_update(model, (line_state({0: 0.0}), 1))
    model.adopt_masks(ServerOptimizer())
    assert model.masks["w"].tolist() == [0, 1]


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=10, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
def test_adopted_masks_are_valid_and_at_target(scheme, seeds):
    model = model_of(scheme)
    targets = sizes(model.masks)
    clients = []
    for seed in seeds:
        drawn = random_masks(model.spec, 1.0, seed)
        masks = {group: np.sort(drawn[group])[: targets[group]] for group in drawn}
        clients.append((random_state(model.spec, seed=seed, masks=masks), 1))
    apply_update(model, *clients)
    model.adopt_masks(ServerOptimizer())
    check_masks(model.masks, model.spec)
    for group, count in sizes(model.masks).items():
        # Patterns are balanced over filters, and some filters have nothing active to give.
        assert count <= targets[group]
        assert count == targets[group] or model.spec.group_layout(group).num_groups > 1
    for layer, weights in model.weights.items():
        _, active = dense_and_held(model.spec, model.state(), layer)
        assert not weights[~active].any()


def test_a_kernel_that_clients_grew_takes_their_pattern():
    layout = layout_for("pattern", (1, 3, 3, 3))
    spec = ModelSpec({"w": ("w",)}, {"w": layout}, {})

    def state(rows):
        slots = np.array(sorted(rows), np.int32)
        values = np.array([rows[slot] for slot in sorted(rows)], np.float32)
        return SparseState({"w": slots}, {"w": values}, {})

    # Kernel 0 has pattern 1, kernel 1 pattern 2; the client grew kernel 2 with pattern 5.
    model = GlobalModel.from_state(spec, state({1: [1, 1, 1, 1], 8 + 2: [0.1, 0, 0, 0]}))
    grown = state({1: [1, 1, 1, 1], 16 + 5: [2, 3, 4, 5]})
    apply_update(model, (grown, 1))
    model.adopt_masks(ServerOptimizer())
    assert model.masks["w"].tolist() == [1, 16 + 5]
    assert model.grown["w"].tolist() == [16 + 5]
    np.testing.assert_array_equal(model.state().values["w"], [[1, 1, 1, 1], [2, 3, 4, 5]])


def test_a_channel_that_clients_grew_counts_in_both_layers():
    spec = spec_for("pair")

    def state(channels):
        slots = np.array(channels, np.int32)
        shape = {name: (len(slots), spec.layouts[name].width) for name in ("a", "b")}
        values = {name: np.zeros(size, np.float32) for name, size in shape.items()}
        return SparseState({"a": slots}, values, {"bias": np.zeros(3, np.float32)})

    start = state([0, 1])
    start.values["a"][:] = [[0.02], [0.01]]
    model = GlobalModel.from_state(spec, start)
    client = state([0, 6])
    client.values["a"][0] = 0.02
    client.values["b"][1] = 0.5  # channel 6: nothing in the first layer, much in the second
    apply_update(model, (client, 2))
    model.adopt_masks(ServerOptimizer())
    assert model.masks["a"].tolist() == [0, 6]
    np.testing.assert_allclose(model.state().values["b"], client.values["b"])


def test_a_round_without_updates_leaves_no_gradient():
    model = line_model({0: 5.0, 1: 4.0}, weights=4)
    apply_update(model, (line_state({0: 1.0}), 3))
    assert model.pseudo_gradient["w"].any()
    before = model.weights["w"].copy()
    apply_update(model)
    assert model.pseudo_gradient == {}
    np.testing.assert_array_equal(model.weights["w"], before)


def test_states_share_nothing_with_the_model():
    model = GlobalModel.from_state(line_spec(4), line_state({0: 1.0, 2: 2.0}))
    state = model.state()
    apply_update(model, (SparseState(state.masks, {"w": column([7.0, 8.0])}, {}), 1))
    np.testing.assert_array_equal(state.values["w"], column([1.0, 2.0]))
