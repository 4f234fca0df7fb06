"""Weight averaging after a mutation: refused where rows of unlike masks would meet, else exact."""

import copy
import pickle

import numpy as np
import pytest
import torch
from nn_cases import generator, seeded
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, match_masks, sparsify
from mest_fed.nn.identity import Values
from mest_fed.sparsity import Bounds, Set


def linears(seed=0):
    layers = (nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return sparsify(seeded(nn.Sequential(*layers), seed), "unstructured", 0.1)


def mutated(model, seed):
    model = copy.deepcopy(model)
    Mutator(model, Set()).mutate(Bounds(floor=0.5), lambda name: np.random.default_rng(seed))
    return model


def pairs(averaged, model):
    return zip(averaged.parameters(), model.parameters(), strict=True)


@torch.no_grad()
def lerp(averaged, model):
    for ours, theirs in pairs(averaged, model):
        ours.lerp_(theirs, 0.1)


def lerp_data(averaged, model):
    for ours, theirs in pairs(averaged, model):
        ours.data.lerp_(theirs.data, 0.1)


@torch.no_grad()
def multiply_and_add(averaged, model):
    for ours, theirs in pairs(averaged, model):
        ours.mul_(0.9).add_(theirs, alpha=0.1)


def assign(averaged, model):
    for ours, theirs in pairs(averaged, model):
        ours.data = 0.9 * ours.data + 0.1 * theirs.data


@torch.no_grad()
def lists(averaged, model):
    torch._foreach_mul_(list(averaged.parameters()), 0.9)
    torch._foreach_add_(list(averaged.parameters()), list(model.parameters()), alpha=0.1)


def accumulate(averaged, model):
    for ours, theirs in pairs(averaged, model):
        total = torch.zeros_like(ours).detach()
        total += 0.9 * ours.detach()
        total += 0.1 * theirs.detach()
        ours.data.copy_(total)


def stack(averaged, model):
    for ours, theirs in pairs(averaged, model):
        ours.data = torch.stack([ours.data] * 9 + [theirs.data]).mean(0)


def vectors(averaged, model):
    ours, theirs = (parameters_to_vector(m.parameters()).detach() for m in (averaged, model))
    vector_to_parameters(0.9 * ours + 0.1 * theirs, averaged.parameters())


def states(averaged, model):
    theirs = model.state_dict()
    for key, tensor in averaged.state_dict().items():
        tensor.mul_(0.9).add_(theirs[key], alpha=0.1)


def new_state(averaged, model):
    ours, theirs = averaged.state_dict(), model.state_dict()
    averaged.load_state_dict({key: 0.9 * ours[key] + 0.1 * theirs[key] for key in ours})


def new_state_from_numpy(averaged, model):
    ours, theirs = ({k: t.numpy() for k, t in m.state_dict().items()} for m in (averaged, model))
    mean = {key: torch.as_tensor(0.9 * ours[key] + 0.1 * theirs[key]) for key in ours}
    averaged.load_state_dict(mean)


def shadow_by_name(averaged, model):
    shadow = {n: p.data.clone() for n, p in averaged.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        shadow[name] = (0.1 * parameter.data + 0.9 * shadow[name]).clone()
    for name, parameter in averaged.named_parameters():
        parameter.data = shadow[name]


@torch.no_grad()
def shadow_of_differences(averaged, model):
    shadow = [p.clone().detach() for p in averaged.parameters() if p.requires_grad]
    for kept, parameter in zip(shadow, model.parameters(), strict=True):
        kept.sub_((kept - parameter).mul_(0.1))
    for kept, parameter in zip(shadow, averaged.parameters(), strict=True):
        parameter.copy_(kept)


def torchs(**settings):
    def update(averaged, model):
        average = AveragedModel(averaged, **settings)
        average.update_parameters(averaged)
        average.update_parameters(model)
        averaged.load_state_dict(average.module.state_dict())

    return update


UPDATES = {
    "AveragedModel, lists": torchs(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "AveragedModel, tensors": torchs(avg_fn=get_ema_avg_fn(0.9)),
} | {
    update.__name__: update
    for update in (
        *(lerp, lerp_data, multiply_and_add, assign, lists, accumulate, stack, vectors),
        *(states, new_state, new_state_from_numpy, shadow_by_name, shadow_of_differences),
    )
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_averaging_over_a_mutation_is_refused(update):
    model = linears()
    averaged = mutated(model, 1)
    with pytest.raises(InputError) as caught:
        update(averaged, mutated(model, 2))
    assert "\n" not in str(caught.value)
    assert "match_masks" in str(caught.value)


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_averaging_models_of_one_mask_is_exact(update):
    model = mutated(linears(), 1)
    averaged, doubled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    update(averaged, doubled)
    for before, after in pairs(model, averaged):
        torch.testing.assert_close(after.detach(), 1.1 * before.detach())
    averaged(torch.ones(3, 16)).sum().backward()


def test_copying_values_or_a_vector_of_them_under_another_mask_is_refused():
    model = linears()
    ours, theirs = mutated(model, 1), mutated(model, 2)
    before = [parameter.detach().clone() for parameter in ours.parameters()]
    with torch.no_grad(), pytest.raises(InputError, match="copy_"):
        ours[0].values.copy_(theirs[0].values)
    with pytest.raises(InputError, match="an assignment"):
        ours[0].values.data = theirs[0].values.data
    with pytest.raises(InputError, match="an assignment"):
        vector_to_parameters(parameters_to_vector(theirs.parameters()), ours.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


def test_matched_masks_average_by_slot():
    model = linears()
    averaged = copy.deepcopy(model)
    other = mutated(model, 1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3).add_(1)
    expected = 0.9 * averaged[0].dense_weight() + 0.1 * other[0].dense_weight()
    match_masks(averaged, other)
    lerp(averaged, other)
    assert torch.equal(averaged[0].slots, other[0].slots)
    active = torch.zeros(256, dtype=torch.bool)
    active[other[0].slots.long()] = True
    torch.testing.assert_close(averaged[0].dense_weight(), expected * active.view(16, 16))


def test_masks_of_another_model_cannot_be_matched():
    small = sparsify(seeded(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))), "block", 0.5)
    with pytest.raises(InputError, match="mask groups"):
        match_masks(small, linears())


def test_what_is_no_average_of_rows_is_free():
    ours, theirs = mutated(linears(), 1), mutated(linears(), 2)
    a, b = ours[0].values, theirs[0].values
    assert not torch.equal(a, b)
    assert (a == b).shape == a.shape
    penalty = sum(p.pow(2).sum() for m in (ours, theirs) for p in m.parameters())
    (penalty + (ours(torch.ones(2, 16)) - theirs(torch.ones(2, 16))).square().sum()).backward()
    for blank in (torch.zeros_like(a), torch.empty_like(a), a.new_zeros(a.shape)):
        assert type(blank) is torch.Tensor
    a.data[:3].lerp_(b.data[4:7], 0.5)  # the user's own choice of rows


def gradients(model, x):
    """Return the gradients of a loss as ``backward`` leaves them."""
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def gradients_at_once(model, x):
    return torch.autograd.grad(model(x).square().sum(), list(model.parameters()))


@pytest.mark.parametrize("take", [gradients, gradients_at_once])
def test_gradients_of_unlike_masks_are_not_averaged(take):
    first, second, third = (mutated(linears(), seed) for seed in (1, 1, 2))
    x = torch.randn(4, 16, generator=generator())
    ours, same, unlike = (take(model, x) for model in (first, second, third))
    for one, other in zip(ours, same, strict=True):
        torch.testing.assert_close(torch.stack([one, other]).mean(0), one)
    for average in (
        lambda a, b: torch.stack([a, b]).mean(0),
        lambda a, b: (a + b) / 2,
        lambda a, b: torch.zeros_like(a).add_(a).add_(b),
    ):
        with pytest.raises(InputError, match="unlike masks"):
            average(ours[0], unlike[0])
    with pytest.raises(InputError, match="an assignment"):
        first[0].values.grad = unlike[0]
    with torch.no_grad():
        first[0].values.sub_(0.5 * (ours[0] + same[0]))  # FedSGD's step
        with pytest.raises(InputError, match="unlike masks"):
            third[0].values.sub_(ours[0])


def test_a_gradient_stays_the_object_that_it_was():
    layer = linears()[0]
    layer(torch.ones(2, 16)).sum().backward()
    kept = layer.values.grad
    assert layer.values.grad is kept
    assert kept.masks == layer.values.masks
    layer(torch.ones(2, 16)).sum().backward()
    assert layer.values.grad is kept  # the second gradient was added
    kept.zero_()
    layer(torch.ones(2, 16)).sum().backward()
    assert layer.values.grad.masks == layer.values.masks
    layer.values.grad = None
    assert layer.values.grad is None


def test_a_parameter_that_is_set_as_values_stays_the_same_object():
    model = linears()
    parameter = nn.Parameter(model[0].values.detach().clone())
    model[0].values = parameter
    assert model[0].values is parameter
    assert isinstance(parameter, Values)
    assert isinstance(parameter, nn.Parameter)
    model(torch.ones(2, 16)).sum().backward()
    torch.optim.SGD([parameter], lr=0.1).step()
    with torch.no_grad(), pytest.raises(InputError, match="unlike masks"):
        parameter.lerp_(mutated(model, 1)[0].values, 0.5)


def test_values_are_parameters_and_pickle_as_plain_ones():
    values = linears()[0].values
    assert isinstance(values, nn.Parameter)
    assert isinstance(copy.deepcopy(values), Values)
    assert type(pickle.loads(pickle.dumps(values))) is nn.Parameter
    assert type(pickle.loads(pickle.dumps(values.detach()))) is torch.Tensor
    for model in (linears().double(), linears().half(), linears().to("cpu")):
        assert isinstance(model[0].values, Values)
        assert model[0].values.masks == values.masks


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    **{name: {} for name in ("AdamW", "Adamax", "NAdam", "RAdam", "Adafactor", "Adadelta")},
    **{name: {} for name in ("Adagrad", "RMSprop", "Rprop", "ASGD")},
}


FUSED = ("SGD", "Adam", "AdamW", "Adagrad")
LOOPS = [(name, loops) for name in OPTIMIZERS for loops in ({}, {"foreach": True})]


@pytest.mark.parametrize(("name", "loops"), LOOPS + [(name, {"fused": True}) for name in FUSED])
def test_optimizers_take_the_steps_that_they_take_on_plain_parameters(name, loops):
    settings = OPTIMIZERS[name]
    ours, plain = linears(), linears()
    for number in (0, 2):
        values = plain[number].values.detach().as_subclass(torch.Tensor)
        plain[number]._parameters["values"] = nn.Parameter(values)
    for model in (ours, plain):
        optimizer = getattr(torch.optim, name)(model.parameters(), **settings, **loops)
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 16, generator=generator(step))
            model(x).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    for one, other in pairs(ours, plain):
        assert torch.equal(one.detach(), other.detach())
