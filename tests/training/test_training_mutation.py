"""Mutation within a client's round: when, from what to what, and what is kept meanwhile."""

import numpy as np
import pytest
from training_cases import batches, model

from mest_fed.errors import InputError
from mest_fed.nn import mask_groups, read_state
from mest_fed.sparsity import MestEM, MestEMS, RigL, Set, Static, build_method
from mest_fed.training import LocalMutation, LocalTrainer, OptimizerSettings, RoundMutation


class Watched:
    """Batches that note the active granules of a model before each step."""

    def __init__(self, net, data):
        self.groups, self.data, self.slots = mask_groups(net), data, []

    def __iter__(self):
        for batch in self.data:
            self.slots.append([group.mask.slots.copy() for group in self.groups])
            yield batch

    @property
    def active(self):
        """Active granules of the first group before each step."""
        return [len(slots[0]) for slots in self.slots]

    @property
    def changes(self):
        """Steps whose mask is not that of the step before."""
        pairs = zip(self.slots, self.slots[1:], strict=False)
        return [
            step
            for step, (old, new) in enumerate(pairs, start=1)
            if not all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
        ]


def round_of(method, steps, scheme="block", *, learning_rate=0.05, **when):
    """Train one mutating round; return the model, what was seen, and the optimizer."""
    net = model(scheme)
    optimizer = OptimizerSettings(learning_rate).build(net)
    what = RoundMutation(method, **{"progress": 0.1, "seed": 0, "round": 3, **when})
    seen = Watched(net, batches(steps))
    mutation = LocalMutation(net, optimizer, what, steps)
    LocalTrainer(net, optimizer, micro_batch=8).fit(seen, mutation)
    return net, seen, optimizer


@pytest.mark.parametrize(("steps", "first"), [(2, 1), (3, 1), (6, 3), (7, 3), (10, 5)])
def test_a_hard_bound_mutates_once_in_the_middle(steps, first):
    net, seen, _ = round_of(MestEM(), steps)
    assert seen.changes == [first]
    target = len(mask_groups(model("block"))[0].mask)
    assert set(seen.active) == {target} == {len(mask_groups(net)[0].mask)}


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
def test_a_soft_bound_trains_at_the_ceiling_and_ends_at_the_target(scheme):
    fresh = [len(group.mask) for group in mask_groups(model(scheme))]
    sizes = [group.layout.num_granules for group in mask_groups(model(scheme))]
    net, seen, _ = round_of(MestEMS(), 4, scheme)
    ceiling = [min(size, round(1.5 * n)) for n, size in zip(fresh, sizes, strict=True)]
    assert [[len(slots) for slots in step] for step in seen.slots] == [ceiling] * 4
    assert [len(group.mask) for group in mask_groups(net)] == fresh


def test_new_granules_of_a_soft_bound_can_win():
    net, seen, _ = round_of(MestEMS(), 6, learning_rate=1.0)
    survivors = set(mask_groups(net)[0].mask.slots.tolist())
    start = set(mask_groups(model("block"))[0].mask.slots.tolist())
    assert survivors <= set(seen.slots[0][0].tolist())
    assert survivors - start


@pytest.mark.parametrize("name", ["static", "set", "rigl", "feddst", "mest-em", "mest-ems"])
def test_rounds_of_one_step(name):
    before = read_state(model("block"))
    net, seen, _ = round_of(build_method(name, 0.25), 1)
    target = len(before.masks["stage1.0.conv1"])
    assert seen.active == [round(1.5 * target) if name == "mest-ems" else target]
    after = read_state(net)
    assert {g: len(s) for g, s in after.masks.items()} == {
        g: len(s) for g, s in before.masks.items()
    }
    changed = any((after.masks[g] != before.masks[g]).any() for g in after.masks)
    # One step of this size lets no new granule of a soft bound win.
    assert changed is (name not in ("static", "mest-ems"))


def test_a_round_without_examples_gives_its_masks_back():
    net, _, _ = round_of(MestEMS(), 0)
    before, after = read_state(model("block")), read_state(net)
    assert all((after.masks[g] == before.masks[g]).all() for g in before.masks)


@pytest.mark.parametrize("method", [MestEM(), MestEMS(), Set(), RigL(), Static()])
def test_late_rounds_leave_the_mask_alone(method):
    net, seen, _ = round_of(method, 4, progress=0.8)
    assert seen.changes == []
    assert np.array_equal(mask_groups(net)[0].mask.slots, mask_groups(model("block"))[0].mask.slots)


@pytest.mark.parametrize("progress", [0.1, 0.8])
def test_rigl_keeps_dense_gradients_for_the_step_of_its_mutation_alone(progress):
    net = model("unstructured")
    layers = [layer for group in mask_groups(net) for layer in group.layers]
    optimizer = OptimizerSettings(0.05).build(net)
    kept, step = [], optimizer.step

    def noting_step():
        step()
        kept.append(sum(layer.dense_gradient is not None for layer in layers))

    optimizer.step = noting_step
    mutation = LocalMutation(net, optimizer, RoundMutation(RigL(), progress, seed=0, round=1), 6)
    LocalTrainer(net, optimizer, micro_batch=3).fit(batches(6), mutation)
    every = len(layers) if progress < 0.75 else 0
    assert kept == [0, 0, every, 0, 0, 0]
    assert all(layer.dense_gradient is None for layer in layers)
    assert not any(layer.keep_dense_gradient for layer in layers)


def test_feddst_drops_by_magnitude_whatever_the_weight_of_gradients():
    masks = [
        read_state(round_of(build_method("feddst", 0.25, weight), 4)[0]).masks
        for weight in (0.0, 50.0)
    ]
    assert all(np.array_equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_alpha_of_feddst_is_the_share_that_a_round_replaces():
    def moved(method, progress):
        net, seen, _ = round_of(build_method(method, 0.25), 4, "unstructured", progress=progress)
        before, after = seen.slots[0][0], mask_groups(net)[0].mask.slots
        assert len(before) == len(after)
        return 1 - np.isin(after, before).mean()

    # alpha / 2 (1 + cos(pi r / R_end)), R_end half of the run
    assert moved("feddst", 0.0) == pytest.approx(0.5, abs=0.05)
    assert moved("feddst:0.2", 0.0) == pytest.approx(0.2, abs=0.05)
    assert moved("feddst", 0.25) == pytest.approx(0.25, abs=0.05)
    assert moved("feddst", 0.5) == 0


@pytest.mark.parametrize("alpha", ["0", "1.5", "much", "nan", ""])
def test_an_alpha_that_is_no_share_is_one_line(alpha):
    with pytest.raises(InputError, match=r"feddst:.* is not allowed; allowed: .*\(0, 1\]"):
        build_method(f"feddst:{alpha}", 0.1)


def grown(seed, number):
    """Return what EM grew in the first group in a round of one step."""
    net, seen, _ = round_of(MestEM(), 1, seed=seed, round=number)
    return set(mask_groups(net)[0].mask.slots.tolist()) - set(seen.slots[0][0].tolist())


def test_growth_is_drawn_from_seed_and_round():
    assert grown(1, 4) == grown(1, 4)
    assert grown(1, 4) != grown(1, 5)
    assert grown(1, 4) != grown(2, 4)


def test_the_importance_uses_the_gradient_of_the_last_step():
    masks = [
        read_state(round_of(MestEM(gradient_weight=weight), 2)[0]).masks for weight in (0.0, 50.0)
    ]
    assert any(
        len(a) != len(b) or (a != b).any()
        for a, b in zip(masks[0].values(), masks[1].values(), strict=True)
    )


def test_momentum_has_the_size_of_the_values_after_the_round():
    for method in (MestEM(), MestEMS()):
        net, _, optimizer = round_of(method, 4)
        for group in mask_groups(net):
            for layer in group.layers:
                buffer = optimizer.state[layer.values]["momentum_buffer"]
                assert buffer.shape == layer.values.shape


@pytest.mark.parametrize("owner", [None, 0, 7])
def test_growth_is_drawn_from_the_round_and_where_it_is_private_from_its_owner(owner):
    def drawn(number, whose):
        what = RoundMutation(MestEM(), progress=0.1, seed=0, round=number, owner=whose)
        return what.generator("layer").random(4).tolist()

    assert drawn(3, owner) == drawn(3, owner)
    others = [drawn(4, owner), *(drawn(3, other) for other in {None, 0, 7} - {owner})]
    assert drawn(3, owner) not in others
