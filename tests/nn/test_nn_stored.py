"""A sparse layer in a state_dict: means of equal and of unlike masks, and states that are wrong."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from nn_cases import SCHEMES, seeded, small_resnet
from torch import nn
from torch.nn.utils import prune

from mest_fed.errors import InputError
from mest_fed.nn import (
    Mutator,
    SparseLayer,
    mask_groups,
    read_state,
    sparsify,
    to_dense,
    write_state,
)
from mest_fed.sparsity import Bounds, MestEMS, Set


def linears(density=0.1, width=16, seed=0, scheme="unstructured"):
    layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return sparsify(seeded(nn.Sequential(*layers, nn.Linear(width, 2)), seed), scheme, density)


def mutated(model, seed, kept=0.5):
    model = copy.deepcopy(model)
    Mutator(model, Set()).mutate(Bounds(floor=kept), lambda name: np.random.default_rng(seed))
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, SparseLayer)]


def assert_same_model(ours, theirs):
    for one, other in zip(layers_of(ours), layers_of(theirs), strict=True):
        assert one.slots.dtype == torch.int32
        assert torch.equal(one.slots, other.slots)
        assert one.target == other.target
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach())


def numpy_mean(states, weights):
    return {
        k: sum(w * s[k].numpy() for s, w in zip(states, weights, strict=True)) for k in states[0]
    }


def torch_mean(states, weights):
    return {k: sum(w * s[k] for s, w in zip(states, weights, strict=True)) for k in states[0]}


MEANS = {
    "numpy": numpy_mean,
    "numpy, in the type of the first": lambda states, weights: {
        key: np.asarray(mean).astype(states[0][key].numpy().dtype)
        for key, mean in numpy_mean(states, weights).items()
    },
    "torch": torch_mean,
    "float32": lambda states, weights: torch_mean(
        [{key: tensor.float() for key, tensor in state.items()} for state in states], weights
    ),
    "stacked": lambda states, _: {
        key: torch.stack([state[key].float() for state in states]).mean(0) for key in states[0]
    },
    "median": lambda states, _: {
        key: np.median([state[key].numpy() for state in states], axis=0) for key in states[0]
    },
}


def loaded(state, **changes):
    model = linears(seed=9)
    tensors = {key: torch.as_tensor(value) for key, value in state.items()}
    model.load_state_dict(tensors | changes)
    return model


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.1] * 10, [0.7, 0.3]])
def test_the_mean_of_equal_states_is_the_identical_model(mean, weights):
    model = linears()
    assert_same_model(loaded(mean([model.state_dict() for _ in weights], weights)), model)


def averaged_by_flower(models):
    records = [
        RecordDict({"arrays": ArrayRecord(m.state_dict()), "metrics": MetricRecord({"n": 1.0})})
        for m in models
    ]
    return aggregate_arrayrecords(records, "n").to_torch_state_dict()


def test_flowers_strategies_average_clients_of_one_mask():
    model = linears()
    clients = [copy.deepcopy(model) for _ in range(3)]
    for number, client in enumerate(clients):
        with torch.no_grad():
            for parameter in client.parameters():
                parameter.add_(number - 1)
    assert_same_model(loaded(averaged_by_flower(clients)), model)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_of_equal_states_in_every_scheme(scheme):
    model, target = small_resnet(scheme, 0.3), small_resnet(scheme, 0.1)
    target.load_state_dict(torch_mean([model.state_dict()] * 7, [1 / 7] * 7))
    assert_same_model(target, model)


def test_clients_of_unlike_masks_are_refused_by_name_and_the_model_stays():
    model = linears()
    mean = averaged_by_flower([mutated(model, 1), mutated(model, 2)])
    target = linears(seed=5)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match=r"^0\.slots .*average by slot") as caught:
        target.load_state_dict(mean)
    assert "\n" not in str(caught.value)
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("share", [0.5, 0.1, 1e-3, 1e-4])
def test_even_a_small_share_of_another_mask_is_seen(share):
    model = linears()
    states = [model.state_dict(), mutated(model, 1, kept=0.9).state_dict()]
    with pytest.raises(InputError, match="slots"):
        loaded(numpy_mean(states, [1 - share, share]))


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.01, 0.001])
def test_one_step_of_an_adaptive_strategy_towards_another_mask_is_seen(rate):
    model = linears()
    other = mutated(model, 1, kept=0.9)
    ours, theirs = ({k: t.numpy() for k, t in m.state_dict().items()} for m in (model, other))
    step = {key: rate * np.sign(theirs[key] - ours[key]) for key in ours}
    with pytest.raises(InputError, match="slots"):
        loaded({key: ours[key] + step[key] for key in ours})


def test_a_mean_whose_slots_are_whole_by_chance_is_refused():
    model = linears()
    other = copy.deepcopy(model)
    slots = other[0].slots.clone()
    free = (slots[1:] - slots[:-1]).argmax()
    slots[free] += 2  # the mean with the first is whole, and increases
    other[0].slots = slots
    with pytest.raises(InputError, match=r"0\.slots do not belong to the digest_of_slots"):
        loaded(numpy_mean([model.state_dict(), other.state_dict()], [0.5, 0.5]))


def test_a_median_that_mixes_masks_is_refused():
    model = linears()
    states = [mutated(model, seed).state_dict() for seed in range(3)]
    with pytest.raises(InputError, match="slots"):
        loaded(MEANS["median"](states, None))


def wrong_slots():
    slots = linears().state_dict()["2.slots"]
    whole, integers = "whole increasing numbers", slots.int()
    return {
        "halves": (slots + 0.5, whole),
        "quarters": (slots + 0.25, whole),
        "nan": (slots * math.nan, whole),
        "infinite": (slots * math.inf, whole),
        "unordered": (slots.flip(0), "do not increase"),
        "unordered integers": (integers.flip(0), "do not increase"),
        "repeated": (torch.cat([slots[:1], slots[:-1]]), "do not increase"),
        "negative": (slots - 300, "out of range"),
        "negative integers": (integers - 300, "out of range"),
        "too large": (slots + 1000, "out of range"),
        "beyond int32": (slots + 2.0**32, "out of range"),
        "a matrix": (slots[None], "shape"),
        "of bools": (slots.bool(), "bool"),
        "complex": (slots.to(torch.complex64), "complex"),
        "one too few": (slots[:-1], "digest_of_slots"),
        "another one": (torch.cat([slots[:-1], slots[-1:] - 1]), "digest_of_slots"),
    }


@pytest.mark.parametrize(("slots", "reason"), wrong_slots().values(), ids=wrong_slots())
def test_wrong_slots_are_refused_in_one_line_before_anything_is_loaded(slots, reason):
    state = linears().state_dict()
    target = linears(seed=5)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match=reason) as caught:
        target.load_state_dict(state | {"2.slots": slots})
    assert "2.slots" in str(caught.value)
    assert "\n" not in str(caught.value)
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_values_without_their_slots_are_refused_whatever_strict_says():
    state = {key: tensor.clone() for key, tensor in linears().state_dict().items()}
    for key in ("2.values", "2.slots"):
        target = linears(seed=5)
        before = copy.deepcopy(target.state_dict())
        with pytest.raises(RuntimeError, match=f"{key} came alone"):
            target.load_state_dict({key: state[key]}, strict=False)
        assert torch.equal(target.state_dict()[key], before[key])


def test_one_layer_alone_may_be_loaded():
    source, target = linears(), linears(seed=5)
    first = target[0].slots.clone()
    part = {key: value for key, value in source.state_dict().items() if key.startswith("2.")}
    target.load_state_dict(part, strict=False)
    target[2].load_state_dict(source[2].state_dict())
    assert torch.equal(target[2].slots, source[2].slots)
    assert torch.equal(target[0].slots, first)


def test_two_slots_of_one_kernel_are_refused():
    model = small_resnet("pattern", 0.2)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, SparseLayer) and n)
    slots = layer.slots.clone()
    slots[1] = slots[0] // 8 * 8 + (slots[0] + 1) % 8
    old = integer_state(model) | {f"{name}.slots": slots.sort().values}
    with pytest.raises(InputError, match="share a granule"):
        model.load_state_dict(old)
    with pytest.raises(InputError, match="share a granule"):
        layer.load(slots.sort().values, layer.values.detach())


def test_a_state_of_another_scheme_or_shape_of_equal_width_is_refused():
    with pytest.raises(InputError, match="slots"):
        small_resnet("pattern", 0.05).load_state_dict(small_resnet("block", 0.05).state_dict())
    wide, tall = (
        sparsify(nn.Sequential(nn.Linear(*s), nn.Linear(s[1], 2)), "unstructured", 0.1)
        for s in ((32, 8), (8, 32))
    )
    with pytest.raises(InputError, match="of another scheme or shape"):
        wide[0].load_state_dict(tall[0].state_dict() | {"bias": wide[0].bias.detach()})


def test_layers_that_share_a_mask_must_agree_in_a_state():
    model, other = small_resnet("channel", 0.5), mutated(small_resnet("channel", 0.5), 3)
    name = mask_groups(model)[0].name
    part = {k: v for k, v in other.state_dict().items() if k.startswith(f"{name}.")}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="share one mask"):
        model.load_state_dict(model.state_dict() | part)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def integer_state(model):
    """Return a state as versions without digests wrote it."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("_slots")}
    return {k: v.to(torch.int32) if k.endswith(".slots") else v for k, v in state.items()}


def test_older_states_still_load():
    model = linears()
    assert_same_model(loaded(integer_state(model)), model)


def test_a_mean_of_older_states_is_refused():
    mean = torch_mean([integer_state(linears())] * 2, [0.5, 0.5])
    with pytest.raises(InputError, match="without a digest_of_slots"):
        linears(seed=5).load_state_dict(mean)


def test_a_saved_state_holds_plain_tensors():
    model, file = linears(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert {type(tensor) for tensor in state.values()} == {torch.Tensor}
    assert_same_model(loaded(state), model)
    assert_same_model(pickle.loads(pickle.dumps(model)), model)


def test_assigned_states_are_checked_and_known_too():
    model = linears()
    target = linears(seed=5).to("meta")
    target.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_same_model(target, model)
    target(torch.ones(1, 16)).sum().backward()
    with torch.no_grad(), pytest.raises(InputError, match="unlike masks"):
        target[0].values.lerp_(mutated(model, 1)[0].values, 0.5)


def test_plain_copies_check_nothing_and_pickle_without_the_library():
    plain = to_dense(linears())
    assert not plain._load_state_dict_pre_hooks
    assert b"mest_fed" not in pickle.dumps(plain)


def test_a_grown_state_keeps_its_target():
    model = linears(0.05, width=64)
    Mutator(model, MestEMS()).grow(Bounds(ceiling=1.5), lambda name: np.random.default_rng(0))
    assert [len(layer.slots) for layer in layers_of(model)] == [308, 308]
    resumed = linears(0.2, width=64, seed=5)
    resumed.load_state_dict(model.state_dict())
    for copied in (resumed, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        Mutator(copied, MestEMS()).drop()
        assert [len(layer.slots) for layer in layers_of(copied)] == [205, 205]


def test_an_older_grown_state_keeps_the_target_of_the_model_that_loads_it():
    model, resumed = linears(0.05, width=64), linears(0.05, width=64, seed=5)
    Mutator(model, MestEMS()).grow(Bounds(ceiling=1.5), lambda name: np.random.default_rng(0))
    resumed.load_state_dict(integer_state(model))
    assert Mutator(resumed, MestEMS()).targets == {"0": 205, "2": 205}


@pytest.mark.parametrize("target", [math.nan, -1.0, 25.6, 1e9])
def test_a_wrong_target_is_refused(target):
    with pytest.raises(InputError, match=r"^2\.target_slots"):
        loaded(linears().state_dict(), **{"2.target_slots": torch.tensor(target)})


def test_a_written_state_is_at_its_target():
    source, target = linears(0.3), linears(0.1)
    write_state(target, read_state(source))
    assert Mutator(target, Set()).targets == {g.name: len(g.mask) for g in mask_groups(source)}


def wrong_states():
    def state():
        return read_state(linears())

    def change(part, name, value):
        changed = state()
        getattr(changed, part)[name] = value
        return changed

    slots, values = state().masks["2"], state().values["2"]
    missing = state()
    del missing.values["2"]
    return {
        "unordered": change("masks", "2", slots[::-1].copy()),
        "negative": change("masks", "2", slots - 300),
        "floats": change("masks", "2", slots.astype(np.float32)),
        "too few": change("masks", "2", slots[:-1]),
        "another width": change("values", "2", values.repeat(2, axis=1)),
        "missing": missing,
        "unknown": change("masks", "9", slots),
        "a dense tensor": change("dense", "4.weight", np.zeros((1, 16), np.float32)),
    }


@pytest.mark.parametrize("state", wrong_states().values(), ids=wrong_states())
def test_writing_a_wrong_state_is_refused_and_the_model_stays(state):
    model = linears(seed=5)
    before = read_state(model)
    with pytest.raises(InputError) as caught:
        write_state(model, state)
    assert "\n" not in str(caught.value)
    after = read_state(model)
    for part in ("masks", "values", "dense"):
        for name, array in getattr(before, part).items():
            np.testing.assert_array_equal(getattr(after, part)[name], array)


def test_slots_that_an_average_over_buffers_edited_are_refused():
    model = linears()
    model[0].slots.copy_((model[0].slots * 0.9 + model[0].slots * 0.1).sub(0.5))
    for use in (
        lambda: model(torch.ones(1, 16)),
        model.state_dict,
        lambda: Mutator(model, Set()).drop(),
    ):
        with pytest.raises(InputError, match="edited in place"):
            use()


def test_a_pruned_layer_keeps_its_mask_and_its_states():
    model = linears()
    prune.l1_unstructured(model[0], "values", 0.5)
    state = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    with pytest.raises(InputError, match="are computed"):
        Mutator(model, Set())
    other = mutated(linears(), 1)[0].state_dict()["slots"]
    with pytest.raises(RuntimeError, match="values are computed"):
        model[0].load_state_dict(model[0].state_dict() | {"slots": other.int()})


def test_values_of_one_mask_beside_slots_of_another_are_refused():
    model, other = linear(0), linear(1)
    mixed = {**model.state_dict(), **dict(other.named_parameters())}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"are of another mask than .*slots"):
        model.load_state_dict(mixed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def linear(seed):
    """Return a model with a mask of its own."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    return sparsify(layers, "unstructured", density=0.2)
