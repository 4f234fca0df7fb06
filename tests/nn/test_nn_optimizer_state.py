"""Any optimizer of torch through a mutation: as on the dense layer, restricted to the mask."""

import numpy as np
import pytest
import torch
from nn_cases import draw, seeded
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, SparseLayer, sparsify
from mest_fed.nn.slots import scattered
from mest_fed.sparsity import Bounds, MestEM

#: Options, and where a state begins that does not begin at zero.
ELEMENTWISE = {
    "SGD": ({"lr": 0.1, "momentum": 0.9, "nesterov": True}, {}),
    "Adam": ({"amsgrad": True}, {}),
    "AdamW": ({"weight_decay": 0.1}, {}),
    "Adamax": ({}, {}),
    "NAdam": ({}, {}),
    "RAdam": ({}, {}),
    "Adadelta": ({}, {}),
    "Adagrad": ({"initial_accumulator_value": 0.1}, {"sum": 0.1}),
    "RMSprop": ({"momentum": 0.9, "centered": True}, {}),
    "Rprop": ({"lr": 0.02}, {"step_size": 0.02}),
    "ASGD": ({}, {}),
}


def net():
    layers = (nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    return seeded(nn.Sequential(*layers)).double()


def masks(model):
    return {
        f"{name}.weight": scattered(
            layer.layout, torch.ones(len(layer.slots), layer.layout.width), layer.slots
        ).bool()
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }


def edit(optimizer, parameter, kept, starts):
    """Do to a dense layer and its state what a mutation must do."""
    parameter.data *= kept
    for key, tensor in optimizer.state[parameter].items():
        if tensor.shape == parameter.shape:
            tensor.mul_(kept).add_(~kept * starts.get(key, 0.0))


@pytest.mark.parametrize("scheme", ["unstructured", "block"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_on_a_mask_it_is_the_dense_one_and_so_after_a_mutation(name, scheme):
    options, starts = ELEMENTWISE[name]
    sparse, dense = sparsify(net(), scheme, 0.4), net()
    weights = dict(dense.named_parameters())
    for key, mask in masks(sparse).items():
        weights[key].data = sparse.get_submodule(key.removesuffix(".weight")).dense_weight() * mask
    ours = getattr(torch.optim, name)(sparse.parameters(), **options)
    theirs = getattr(torch.optim, name)(dense.parameters(), **options)
    mutator = Mutator(sparse, MestEM(gradient_weight=0.0), ours)
    for number in range(6):
        x = draw(8, 12, seed=number, dtype=torch.float64)
        for model, optimizer in ((sparse, ours), (dense, theirs)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            for key, mask in masks(sparse).items() if model is dense else ():
                weights[key].grad *= mask
            optimizer.step()
        if number % 3 == 2:
            before = masks(sparse)
            mutator.mutate(Bounds(floor=0.6), lambda _, n=number: np.random.default_rng(n))
            for key, mask in masks(sparse).items():
                edit(theirs, weights[key], mask & before[key], starts)
                assert (mask & ~before[key]).any()
    for key in masks(sparse):
        layer = sparse.get_submodule(key.removesuffix(".weight"))
        torch.testing.assert_close(
            layer.dense_weight(), weights[key].detach(), rtol=1e-7, atol=1e-10
        )


@pytest.mark.parametrize("scheme", ["unstructured", "block"])
def test_adafactor_trains_through_mutations(scheme):
    sparse = sparsify(net(), scheme, 0.4)
    optimizer = torch.optim.Adafactor(sparse.parameters(), lr=0.05)
    mutator = Mutator(sparse, MestEM(), optimizer)
    x, losses = draw(8, 12, dtype=torch.float64), []
    for number in range(12):
        optimizer.zero_grad()
        loss = sparse(x).square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        if number % 4 == 3:
            mutator.mutate(Bounds(floor=0.8), lambda _, n=number: np.random.default_rng(n))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "why"), [("LBFGS", "vectors over all parameters"), ("Muon", "matrix of weights")]
)
def test_what_cannot_be_mutated_is_refused(name, why):
    if not hasattr(torch.optim, name):
        pytest.skip("this torch has it not")
    sparse = sparsify(net(), "block", 0.4)
    given = [p for p in sparse.parameters() if p.dim() == 2]
    with pytest.raises(InputError, match=f"{name} .*{why}"):
        Mutator(sparse, MestEM(), getattr(torch.optim, name)(given))
