"""What a mutation does to an optimizer: whose values it trains, and its state of them."""

import pytest
import torch
from nn_cases import (
    chain,
    draw,
    growth,
    sparse_chain,
    train_step,
)
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn import Mutator, sparsify
from mest_fed.nn.optimizers import SGD
from mest_fed.sparsity import Bounds, MestEM, MestEMS, Set

IMAGES, LABELS = draw(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])


def made_before_sparsify():
    model = chain()
    optimizer = torch.optim.Adam(model.parameters())
    return sparsify(model, "block", 0.3), optimizer


def made_of_another_model():
    return sparse_chain()[0], SGD(sparse_chain()[0].parameters(), 0.1)


def made_before_values_were_assigned():
    model, optimizer = sparse_chain()
    model.load_state_dict(sparse_chain()[0].state_dict(), assign=True)
    return model, optimizer


def with_groups_that_were_rebuilt():
    model, optimizer = sparse_chain()
    optimizer.param_groups.clear()
    optimizer.add_param_group({"params": [model[0].weight]})
    return model, optimizer


WITHOUT_VALUES = (
    made_before_sparsify,
    made_of_another_model,
    made_before_values_were_assigned,
    with_groups_that_were_rebuilt,
)


@pytest.mark.parametrize("build", WITHOUT_VALUES)
def test_an_optimizer_that_does_not_train_the_values_is_refused(build):
    model, optimizer = build()
    with pytest.raises(InputError, match=r"^2\.values is not among the optimizer's") as caught:
        Mutator(model, MestEM(), optimizer)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_loses_the_values_later_is_refused_at_the_mutation():
    model, optimizer = sparse_chain()
    mutator = Mutator(model, MestEM(), optimizer)
    optimizer.load_state_dict(optimizer.state_dict())  # this one keeps its parameters
    mutator.mutate(Bounds(floor=0.5), growth())
    model[2].values = nn.Parameter(model[2].values.detach().clone())
    slots = model[2].slots.clone()
    for change in (mutator.mutate, mutator.grow):
        with pytest.raises(InputError, match="not among the optimizer"):
            change(Bounds(floor=0.5), growth())
    assert torch.equal(model[2].slots, slots)


def test_values_that_do_not_train_need_no_optimizer():
    model, _ = sparse_chain()
    model[2].values.requires_grad_(False)
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad]
    Mutator(model, MestEM(), torch.optim.SGD(rest, lr=0.1))


def test_a_wrapper_without_parameters_and_lbfgs_are_refused():
    model, optimizer = sparse_chain()

    class Wrapper:
        state = optimizer.state

    with pytest.raises(InputError, match="Wrapper has no param_groups"):
        Mutator(model, MestEM(), Wrapper())
    with pytest.raises(InputError, match="LBFGS"):
        Mutator(model, MestEM(), torch.optim.LBFGS(model.parameters()))


def test_state_of_each_row_moves_with_its_row_whatever_its_type():
    model, optimizer = sparse_chain()
    layer, old = model[2], model[2].mask
    state = optimizer.state[layer.values]
    state["variance"] = torch.arange(1.0, len(old) + 1).view(-1, 1)  # as Adafactor keeps it
    state["age"] = torch.arange(1, len(old) + 1)
    state["half"] = torch.ones(layer.values.shape, dtype=torch.bfloat16)
    state["columns"] = torch.ones(1, layer.layout.width)
    state["step"] = torch.tensor([7.0])
    before = dict(state)
    Mutator(model, Set(), optimizer).mutate(Bounds(floor=0.5), growth())
    rows = torch.from_numpy(layer.mask.rows_in(old))
    kept, grown = rows >= 0, rows < 0
    for key in ("variance", "age", "half"):
        assert torch.equal(state[key][kept], before[key][rows[kept]])
        assert not state[key][grown].any()
        assert state[key].dtype == before[key].dtype
    assert state["step"] is before["step"]
    assert state["columns"] is before["columns"]


@pytest.mark.parametrize("entry", [torch.ones(5, 5), [torch.ones(7)], {"left": torch.ones(3, 3)}])
def test_state_that_cannot_be_edited_is_refused_before_the_mask_changes(entry):
    model, optimizer = sparse_chain()
    optimizer.state[model[2].values]["preconditioner"] = entry
    slots = model[2].slots.clone()
    with pytest.raises(InputError, match="SGD keeps 'preconditioner' of shape"):
        Mutator(model, Set(), optimizer).mutate(Bounds(floor=0.5), growth())
    assert torch.equal(model[2].slots, slots)


@pytest.mark.parametrize("name", ["Adafactor", "Adagrad", "AdamW", "NAdam", "RMSprop", "Rprop"])
def test_optimizers_train_on_over_mutations(name):
    model, _ = sparse_chain("block")
    optimizer = getattr(torch.optim, name)(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    mutator = Mutator(model, MestEMS(), optimizer)
    for seed in range(2):
        train_step(model, optimizer, IMAGES, LABELS)
        mutator.grow(Bounds(ceiling=1.5), growth(seed))
        train_step(model, optimizer, IMAGES, LABELS)
        mutator.drop()
        scheduler.step()
    assert len(model[2].mask) == mutator.targets["2"]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_consumed_gradients_move_with_their_values(momentum):
    model, _ = sparse_chain()
    optimizer = SGD(model.parameters(), 0.1, momentum=momentum, release_gradients=True)
    layer, old = model[2], model[2].mask
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    (total,) = (entry.clone() for entry in optimizer.state[layer.values].values())
    before = layer.values.detach().clone()
    Mutator(model, Set(), optimizer).mutate(Bounds(floor=0.5), growth())
    optimizer.step()
    rows = torch.from_numpy(layer.mask.rows_in(old))
    kept = rows >= 0
    assert torch.equal(layer.values[kept], before.sub(total, alpha=0.1)[rows[kept]])
    assert not layer.values[~kept].any()
