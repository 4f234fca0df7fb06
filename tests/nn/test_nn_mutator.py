"""Mutation of models: what is kept, what starts at zero, and how many granules active."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import (
    SCHEMES,
    draw,
    growth,
    seeded,
    small_resnet,
    sparse_chain,
    train_step,
)
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, mask_groups, sparsify
from mest_fed.nn.models.resnet import ResidualBlock
from mest_fed.sparsity import (
    Bounds,
    Interval,
    Mask,
    MestEM,
    MestEMS,
    RigL,
    Set,
    Static,
    build_method,
)

METHODS = ("static", "set", "rigl", "mest-em", "mest-ems")
IMAGES, LABELS = draw(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])


def paired(scheme, density):
    """Return a residual block between stem and classifier: one channel pair."""
    body = (nn.Conv2d(1, 6, 3), ResidualBlock(6, 10, 1, "group"), nn.Flatten())
    model = sparsify(seeded(nn.Sequential(*body, nn.Linear(160, 3))), scheme, density)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def by_slot(group, optimizer):
    """Return {slot: (values, momentum)} over all members of a group."""
    tensors = [layer.values.detach() for layer in group.layers]
    tensors += [optimizer.state[layer.values]["momentum_buffer"] for layer in group.layers]
    rows = torch.cat(tensors, dim=1)
    return dict(zip(group.mask.slots.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("build", [sparse_chain, paired])
def test_kept_values_and_momentum_are_untouched_and_grown_ones_are_zero(scheme, build):
    model, optimizer = build(scheme, 0.3)
    train_step(model, optimizer, IMAGES, LABELS)
    for group in mask_groups(model):
        before = by_slot(group, optimizer)
        target = len(group.mask)
        Mutator(model, MestEM(), optimizer).mutate(Bounds(floor=0.6), growth())
        after = by_slot(group, optimizer)
        assert len(after) == target
        grown = after.keys() - before.keys()
        assert len(grown) == target - round(0.6 * target) > 0
        for slot in after.keys() - grown:
            assert after[slot] == before[slot]
        for slot in grown:
            assert not any(after[slot])


def test_a_regrown_weight_has_no_memory_of_its_first_life():
    model, optimizer = sparse_chain()
    train_step(model, optimizer, IMAGES, LABELS)
    group = mask_groups(model)[0]
    mutator = Mutator(model, Set(), optimizer)
    before = by_slot(group, optimizer)
    # Drop half, then grow until everything is active: the dropped come back among the rest.
    mutator.targets[group.name] = len(before) // 2
    mutator.drop()
    lost = before.keys() - set(group.mask.slots.tolist())
    mutator.targets[group.name] = group.layout.num_granules
    mutator.grow(Bounds(), growth())
    after = by_slot(group, optimizer)
    assert lost
    assert all(any(before[slot]) and not any(after[slot]) for slot in lost)


def test_adam_moments_move_with_their_values():
    model, _ = sparse_chain()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    train_step(model, optimizer, IMAGES, LABELS)
    values = model[2].values
    before = {k: v.clone() for k, v in optimizer.state[values].items()}
    old = model[2].mask
    Mutator(model, Set(), optimizer).mutate(Bounds(floor=0.5), growth())
    rows = torch.from_numpy(model[2].mask.rows_in(old))
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        moment = optimizer.state[values][key]
        assert torch.equal(moment[rows >= 0], before[key][rows[rows >= 0]])
        assert not moment[rows < 0].any()
    assert optimizer.state[values]["step"] == before["step"]
    train_step(model, optimizer, IMAGES, LABELS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_counts_hold_through_any_sequence_of_mutations(name, scheme, data):
    model, optimizer = paired(scheme, data.draw(st.floats(0.05, 0.4)))
    method = build_method(name, 0.1)
    mutator = Mutator(model, method, optimizer)
    targets = dict(mutator.targets)
    steps = data.draw(st.lists(st.sampled_from(["mutate", "grow", "drop"]), max_size=5))
    for number, what in enumerate(steps):
        bounds = method.bounds(number / 8)
        mutator.keep_dense_gradients(True)
        train_step(model, optimizer, draw(4, 1, 6, 6, seed=number), LABELS[:4])
        if what == "drop":
            mutator.drop()
        else:
            getattr(mutator, what)(bounds, growth(number))
        for group in mutator.groups:
            target = targets[group.name]
            ceiling = bounds.ceiling_count(target, group.layout)
            if what != "grow":
                assert len(group.mask) == (target if what == "drop" else ceiling)
            assert target <= len(group.mask) <= min(2 * target, group.layout.num_granules)
            assert np.array_equal(group.mask.slots, np.unique(group.mask.slots))
            assert len(np.unique(group.mask.granules)) == len(group.mask)
            for layer in group.layers:
                assert np.array_equal(layer.slots.numpy(), group.mask.slots)
                assert layer.values.shape == (len(group.mask), layer.layout.width)
                moments = optimizer.state[layer.values]["momentum_buffer"]
                assert moments.shape == layer.values.shape


@pytest.mark.parametrize("scheme", SCHEMES)
def test_grown_values_train_afterwards(scheme):
    model, optimizer = sparse_chain(scheme)
    old = model[2].mask
    Mutator(model, MestEMS(), optimizer).grow(Bounds(ceiling=1.5), growth())
    born = torch.from_numpy(model[2].mask.rows_in(old)) < 0
    assert int(born.sum()) == round(1.5 * len(old)) - len(old) > 0
    assert not model[2].values[born].any()
    train_step(model, optimizer, IMAGES, LABELS)
    real = model[2].layout.positions(model[2].slots[born]) < model[2].layout.num_weights
    assert (model[2].values.grad[born][real] != 0).all()
    assert (model[2].values[born][real] != 0).all()


def test_an_ordinary_loop_may_hold_on_to_its_last_loss():
    # The old graph is alive while the next one is built on values of another size.
    model, optimizer = sparse_chain()
    mutator = Mutator(model, MestEMS(), optimizer)
    loss = train_step(model, optimizer, IMAGES, LABELS)
    mutator.grow(Bounds(ceiling=1.5), growth())
    loss = train_step(model, optimizer, IMAGES, LABELS)
    mutator.drop()
    assert train_step(model, optimizer, IMAGES, LABELS) < loss


def test_the_gradients_of_an_old_mask_are_refused():
    # The values were replaced in place: the old graph would multiply by weights of other slots.
    model, optimizer = sparse_chain()
    loss = model(IMAGES).sum()
    Mutator(model, MestEM(), optimizer).mutate(Bounds(floor=0.5), growth())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_importance_reads_the_active_gradient():
    model, optimizer = sparse_chain()
    layer = model[2]
    weakest = int(layer.values.detach().abs().argmin())
    slot = int(layer.slots[weakest])
    layer.values.grad = torch.zeros_like(layer.values)
    layer.values.grad[weakest] = 1e3
    Mutator(model, MestEM(gradient_weight=0.5), optimizer).mutate(Bounds(floor=0.5), growth())
    assert slot in layer.slots.tolist()

    model, optimizer = sparse_chain()
    Mutator(model, MestEM(gradient_weight=0.5), optimizer).mutate(Bounds(floor=0.5), growth())
    assert slot not in model[2].slots.tolist()  # without a gradient it goes


def test_a_group_is_ranked_by_all_its_members():
    model, _ = paired("channel", 0.5)
    (group,) = mask_groups(model)
    with torch.no_grad():
        for layer in group.layers:
            layer.values.fill_(1.0)
        group.layers[0].values[1] = 0.1  # weak in the first, by far the strongest in the second
        group.layers[1].values[1] = 9.0
        group.layers[1].values[3] = 0.1
    strong, weak = group.mask.slots[1].item(), group.mask.slots[3].item()
    mutator = Mutator(model, Set())
    mutator.targets[group.name] = len(group.mask) - 1
    mutator.drop()
    assert strong in group.mask.slots.tolist()
    assert weak not in group.mask.slots.tolist()


def test_rigl_grows_where_the_dense_gradient_is_largest_and_then_forgets_it():
    model, optimizer = sparse_chain()
    layer = model[2]
    mutator = Mutator(model, RigL(), optimizer)
    mutator.keep_dense_gradients(True)
    train_step(model, optimizer, IMAGES, LABELS)
    gradient = layer.dense_gradient.flatten().abs()
    before = set(layer.slots.tolist())
    mutator.mutate(Bounds(floor=0.7), growth())
    grown = set(layer.slots.tolist()) - before
    inactive = sorted(set(range(layer.layout.num_weights)) - before, key=lambda p: -gradient[p])
    assert grown == set(inactive[: len(grown)])
    assert grown
    assert layer.dense_gradient is None
    assert not layer.keep_dense_gradient
    train_step(model, optimizer, IMAGES, LABELS)
    assert layer.dense_gradient is None  # the next step keeps none


def test_a_dense_gradient_is_kept_of_backward_passes_to_the_values_alone():
    model, _ = sparse_chain()
    layer = model[2]
    layer.keep_dense_gradient = True
    images = IMAGES.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), LABELS)
    torch.autograd.grad(loss, images, retain_graph=True)
    torch.autograd.backward(loss, inputs=[images], retain_graph=True)
    assert layer.dense_gradient is None
    torch.autograd.backward(loss, inputs=[layer.values], retain_graph=True)
    once = layer.dense_gradient.clone()
    torch.autograd.grad(loss, images, retain_graph=True)
    assert torch.equal(layer.dense_gradient, once)
    loss.backward()
    torch.testing.assert_close(layer.dense_gradient, 2 * once)


@pytest.mark.parametrize("method", [MestEM(), MestEMS(), Set(), Static()])
def test_other_methods_never_keep_a_dense_gradient(method):
    model, optimizer = sparse_chain()
    Mutator(model, method, optimizer).keep_dense_gradients(True)
    train_step(model, optimizer, IMAGES, LABELS)
    assert model[2].dense_gradient is None


def test_rigl_without_a_dense_gradient_says_so():
    model, optimizer = sparse_chain()
    with pytest.raises(ValueError, match="RigL grows by the dense gradient"):
        Mutator(model, RigL(), optimizer).mutate(Bounds(floor=0.7), growth())


def test_equal_seeds_grow_equally_and_layers_differ():
    def slots(seed):
        model = small_resnet("unstructured", 0.2)
        Mutator(model, MestEM()).step(5, Interval(160), seed)
        return [group.mask.slots for group in mask_groups(model)]

    first, again, other = slots(1), slots(1), slots(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_step_mutates_when_due_and_says_so():
    model, optimizer = sparse_chain()
    mutator = Mutator(model, MestEM(), optimizer)
    before = model[2].slots.clone()
    assert not mutator.step(0, Interval(160), seed=0)
    assert not mutator.step(4, Interval(160), seed=0)
    assert torch.equal(model[2].slots, before)
    assert mutator.step(5, Interval(160), seed=0)
    assert not torch.equal(model[2].slots, before)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.floats(0.01, 1.0), st.sampled_from(METHODS))
def test_every_run_ends_at_the_target_however_short(steps, period, name):
    model, _ = sparse_chain("block")
    method = build_method(name, 0.05)
    mutator = Mutator(model, method)
    interval = Interval(steps, period)
    for step in range(steps):
        model[2].dense_gradient = model[2].dense_weight()
        mutator.step(step, interval, seed=0)
    assert len(model[2].mask) == mutator.targets["2"]


@pytest.mark.parametrize("steps", [1, 2, 7, 33, 160])
@pytest.mark.parametrize("period", [0.03125, 0.3, 1.0])
def test_the_last_mutation_of_an_interval(steps, period):
    interval = Interval(steps, period)
    due = [step for step in range(steps) if interval.due(step)]
    assert [step for step in due if interval.last(step)] == due[-1:]


def test_mutation_leaves_the_global_generator_alone():
    model, optimizer = sparse_chain("pattern")
    before = torch.get_rng_state()
    Mutator(model, MestEM(), optimizer).step(1, Interval(2), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mask_of_another_shape_is_refused_by_a_layer():
    model, _ = sparse_chain()
    layer, before = model[2], model[2].slots.clone()
    for slots in (layer.slots.flip(0), layer.slots - 1000, torch.tensor([540], dtype=torch.int32)):
        with pytest.raises(InputError, match="slots of a SparseConv2d"):
            layer.replace_mask(Mask(layer.layout, slots.numpy()))
        with pytest.raises(InputError, match="slots of a SparseConv2d"):
            layer.load(slots, torch.zeros(len(slots), 1))
    with pytest.raises(InputError, match="values of shape"):
        layer.load(layer.slots, torch.zeros(3, 1))
    assert torch.equal(layer.slots, before)
