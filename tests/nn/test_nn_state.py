"""State dictionaries and SparseState between models of different active counts."""

import copy

import numpy as np
import pytest
import torch
from nn_cases import SCHEMES, chain, draw, small_resnet, train_step

from mest_fed.nn import Mutator, mask_groups, model_spec, read_state, sparsify, write_state
from mest_fed.sparsity import Bounds, MestEM, MestEMS

LABELS = torch.tensor([3, 1, 4, 1])


def images(seed=0):
    return draw(4, 1, 8, 8, seed=seed)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_loads_into_a_model_of_another_active_count(scheme):
    sparser, denser = small_resnet(scheme, 0.1), small_resnet(scheme, 0.4)
    expected = denser.eval()(images())
    sparser.load_state_dict(denser.state_dict())
    assert torch.equal(sparser.eval()(images()), expected)
    assert [len(g.mask) for g in mask_groups(sparser)] == [len(g.mask) for g in mask_groups(denser)]
    train_step(sparser.train(), sgd(sparser), images(), LABELS)  # gradients fit the new size


def test_a_loaded_model_shares_no_memory_with_what_it_was_loaded_from():
    source, target = small_resnet("block", 0.3), small_resnet("block", 0.1)
    target.load_state_dict(source.state_dict())
    theirs = {t.untyped_storage().data_ptr() for t in source.state_dict().values()}
    assert not theirs & {t.untyped_storage().data_ptr() for t in target.state_dict().values()}


def test_the_state_of_another_scheme_is_refused_as_torch_does():
    target = small_resnet("unstructured", 0.2)
    with pytest.raises(RuntimeError, match=r"size mismatch for stage1\.0\.conv1\.values"):
        target.load_state_dict(small_resnet("block", 0.2).state_dict())


def test_a_state_dict_without_a_mask_is_refused():
    model = small_resnet("block", 0.2)
    state = model.state_dict()
    del state["stage1.0.conv1.slots"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stage1\.0\.conv1\.slots"):
        small_resnet("block", 0.2).load_state_dict(state)


def test_training_resumed_from_a_checkpoint_goes_on_to_the_same_bits():
    model = small_resnet("block", 0.2)
    optimizer = sgd(model)
    mutator = Mutator(model, MestEMS(), optimizer)
    train_step(model, optimizer, images(), LABELS)
    mutator.mutate(Bounds(ceiling=1.5), lambda name: np.random.default_rng(0))
    train_step(model, optimizer, images(1), LABELS)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train_step(model, optimizer, images(2), LABELS)

    resumed = small_resnet("block", 0.2)
    resumed.load_state_dict(kept[0])
    again = sgd(resumed)
    again.load_state_dict(kept[1])
    train_step(resumed, again, images(2), LABELS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_read_and_write_round_trip(scheme):
    source, target = small_resnet(scheme, 0.3), small_resnet(scheme, 0.1)
    source(images())  # running statistics move
    state = read_state(source)
    assert model_spec(source) == model_spec(target)
    write_state(target, state)
    again = read_state(target)
    for part in ("masks", "values", "dense"):
        ours, theirs = getattr(again, part), getattr(state, part)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(target.eval()(images()), source.eval()(images()))


def test_a_state_is_a_copy_both_ways():
    model = small_resnet("block", 0.3)
    before = model.eval()(images())
    state = read_state(model)
    write_state(model, state)
    for part in (state.masks, state.values, state.dense):
        for array in part.values():
            array.fill(0)
    assert torch.equal(model(images()), before)


def test_types_and_names_of_a_state():
    state = read_state(small_resnet("channel", 0.5))
    assert set(state.masks) == {f"stage{s}.0.conv1" for s in (1, 2, 3)}
    assert set(state.values) == {f"stage{s}.0.conv{c}" for s in (1, 2, 3) for c in (1, 2)}
    assert {array.dtype for array in state.masks.values()} == {np.dtype(np.int32)}
    arrays = [*state.values.values(), *state.dense.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert "norm1.running_var" in state.dense
    assert "norm1.num_batches_tracked" not in state.dense  # a count, no weight
    assert not any(name.endswith((".values", ".slots")) for name in state.dense)


def test_a_bias_of_a_sparse_layer_is_a_dense_tensor():
    spec = model_spec(sparsify(chain(), "block", 0.5))
    assert spec.dense == {
        "0.weight": (6, 1, 3, 3),
        "0.bias": (6,),
        "2.bias": (10,),
        "4.weight": (3, 40),
        "4.bias": (3,),
    }
    assert spec.sparse_weights == 10 * 6 * 9
    assert spec.group_of("2") == "2"


def test_density_of_a_state_leaves_padding_out():
    model = sparsify(chain(), "block", 1.0)  # 10 channels in strips of 4
    state, spec = read_state(model), model_spec(model)
    assert state.density(spec) == 1.0
    state.masks["2"] = np.array([0, 2 * 54], np.int32)  # a whole strip and one of two rows
    assert state.density(spec) == (4 + 2) / 540


def test_a_dense_model_has_no_sparse_part():
    model = small_resnet()
    state, spec = read_state(model), model_spec(model)
    assert (state.masks, state.values, spec.groups) == ({}, {}, {})
    assert state.density(spec) == 1.0


def test_writing_a_state_drops_gradients_of_the_old_mask():
    model = small_resnet("block", 0.3)
    model(images()).square().sum().backward()
    write_state(model, read_state(small_resnet("block", 0.1)))
    assert all(layer.values.grad is None for g in mask_groups(model) for layer in g.layers)


def test_mutation_and_reading_keep_slots_increasing():
    model = small_resnet("pattern", 0.2)
    Mutator(model, MestEM()).mutate(Bounds(floor=0.5), lambda name: np.random.default_rng(3))
    for slots in read_state(model).masks.values():
        assert (np.diff(slots) > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_mask_that_the_model_has_stays_and_its_values_are_written(scheme):
    model, source = small_resnet(scheme, 0.2), small_resnet(scheme, 0.2)
    state = read_state(source)
    write_state(model, state)
    slots = [group.layers[0].slots for group in mask_groups(model)]
    train_step(model.train(), sgd(model), images(), LABELS)
    doubled = {name: 2 * values for name, values in state.values.items()}
    state.values = doubled
    write_state(model, state)
    for group, before in zip(mask_groups(model), slots, strict=True):
        assert all(layer.slots is before for layer in group.layers[:1])
        assert all(layer.values.grad is None for layer in group.layers)
    for name, values in read_state(model).values.items():
        np.testing.assert_array_equal(values, doubled[name])


def test_slots_that_were_edited_in_place_are_no_mask_that_the_model_has():
    model = small_resnet("block", 0.2)
    (layer, *_), *_ = (group.layers for group in mask_groups(model))
    slots = layer.slots.clone()
    assert layer.has_mask(slots)
    assert not layer.has_mask(slots[1:])
    assert not layer.has_mask(slots.long())
    layer.slots[0] += 0  # as any edit, it counts
    assert not layer.has_mask(slots)
