"""SGD against torch's: bit for bit, and to rounding where gradients are consumed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import draw, generator, small_resnet
from torch import nn
from torch.nn.functional import cross_entropy

from mest_fed.nn import Mutator, mask_groups
from mest_fed.nn.client_optimizer import MOMENTUM
from mest_fed.nn.optimizers import SGD
from mest_fed.sparsity import Bounds, MestEM


class TwoHeads(nn.Module):
    """A body and two heads, of which one is asked at a time: the other has no gradient then."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator())

    def forward(self, x, head):
        return self.heads[head](self.body(x).tanh())


def train(net, optimizer, steps, parts):
    """Take steps of several micro-batches; the head changes every two steps."""
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(parts):
            logits = net(draw(5, 6, seed=10 * step + part), step // 2 % 2)
            cross_entropy(logits, torch.arange(5) % 3).backward()
        optimizer.step()
    return net.state_dict()


def theirs(steps, parts, momentum, decay):
    net = TwoHeads()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum, weight_decay=decay, fused=True)
    if momentum:  # torch 2.13 fails where some parameters have a momentum and others none yet
        for parameter in net.parameters():
            optimizer.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
    return train(net, optimizer, steps, parts)


def ours(steps, parts, momentum, decay, *, release_gradients):
    net = TwoHeads()
    optimizer = SGD(
        net.parameters(),
        0.1,
        momentum=momentum,
        weight_decay=decay,
        release_gradients=release_gradients,
    )
    state = train(net, optimizer, steps, parts)
    assert all((parameter.grad is None) or not release_gradients for parameter in net.parameters())
    optimizer.close()
    return state


factors = st.sampled_from([0.0, 0.5, 0.9]) | st.floats(0, 0.999)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 4), factors, st.sampled_from([0.0, 1e-4, 0.1]))
def test_it_is_torch_s(steps, parts, momentum, decay):
    expected = theirs(steps, parts, momentum, decay)
    for name, tensor in ours(steps, parts, momentum, decay, release_gradients=False).items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in ours(steps, parts, momentum, decay, release_gradients=True).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def one(release_gradients=True, **settings):
    weight = nn.Parameter(torch.tensor([2.0, -4.0]))
    return weight, SGD([weight], 0.5, release_gradients=release_gradients, **settings)


@pytest.mark.parametrize("release_gradients", [False, True])
def test_two_steps_by_hand(release_gradients):
    weight, optimizer = one(release_gradients, momentum=0.5, weight_decay=0.25)
    # v = 0.5 v + g + 0.25 w; w -= 0.5 v
    optimizer.zero_grad()
    (weight * torch.tensor([1.0, 3.0])).sum().backward()
    optimizer.step()
    assert weight.tolist() == [2 - 0.5 * 1.5, -4 - 0.5 * 2.0]
    assert optimizer.state[weight][MOMENTUM].tolist() == [1.5, 2.0]
    optimizer.zero_grad()
    for _ in range(2):
        weight.sum().backward()  # 2 in all
    optimizer.step()
    momentum = [0.5 * 1.5 + 2 + 0.25 * 1.25, 0.5 * 2.0 + 2 - 0.25 * 5.0]
    assert optimizer.state[weight][MOMENTUM].tolist() == momentum
    assert weight.tolist() == [1.25 - 0.5 * momentum[0], -5.0 - 0.5 * momentum[1]]


def test_consumed_gradients_leave_nothing_behind():
    weight, optimizer = one(momentum=0.5)
    for _ in range(2):
        weight.sum().backward()
        assert weight.grad is None
    assert optimizer.state[weight][MOMENTUM].tolist() == [2.0, 2.0]
    optimizer.step()
    optimizer.step()  # without a gradient nothing moves
    assert weight.tolist() == [1.0, -5.0]


def test_without_momentum_nothing_is_kept_from_step_to_step():
    for release_gradients in (False, True):
        weight, optimizer = one(release_gradients)
        weight.sum().backward()
        optimizer.step()
        assert weight.tolist() == [1.5, -4.5]
        assert not any(MOMENTUM in state for state in optimizer.state.values())


def test_gradients_that_are_asked_for_stay_until_after_the_step():
    weight, optimizer = one(momentum=0.5)
    optimizer.keep_gradients = True
    for _ in range(2):
        weight.sum().backward()
    assert weight.grad.tolist() == [2.0, 2.0]
    optimizer.step()
    assert weight.grad.tolist() == [2.0, 2.0]
    assert weight.tolist() == [1.0, -5.0]
    optimizer.keep_gradients = False
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    assert weight.grad is None
    assert weight.tolist() == [1.0 - 0.5 * 2.0, -5.0 - 0.5 * 2.0]


def test_closing_ends_it():
    weight, optimizer = one()
    optimizer.close()
    weight.sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0]
    assert not weight._post_accumulate_grad_hooks
    optimizer.close()


def test_what_is_forgotten_has_no_effect_on_the_step():
    weight, optimizer = one()
    weight.sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert weight.tolist() == [2.0, -4.0]


def test_what_does_not_train_is_left_out():
    still = nn.Parameter(torch.ones(1), requires_grad=False)
    assert SGD([still], 0.1, release_gradients=True).parameters == []


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
@pytest.mark.parametrize("release_gradients", [False, True])
def test_the_state_survives_a_mutation(scheme, release_gradients):
    nets = [small_resnet(scheme, norm="group").double().train() for _ in range(2)]
    optimizers = [
        SGD(
            nets[0].parameters(),
            0.1,
            momentum=0.9,
            weight_decay=1e-3,
            release_gradients=release_gradients,
        ),
        torch.optim.SGD(nets[1].parameters(), 0.1, 0.9, weight_decay=1e-3),
    ]
    images, labels = draw(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    for net, optimizer in zip(nets, optimizers, strict=True):
        mutator = Mutator(net, MestEM(gradient_weight=0.0), optimizer)
        for number in range(3):
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            optimizer.step()
            mutator.mutate(Bounds(floor=0.6), lambda name, n=number: np.random.default_rng(n))
    for ours, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        moments = optimizers[0].state[ours][MOMENTUM], optimizers[1].state[expected][MOMENTUM]
        torch.testing.assert_close(*moments, rtol=1e-9, atol=1e-12)
    for group in mask_groups(nets[0]):
        moment = optimizers[0].state[group.layers[0].values][MOMENTUM]
        assert not moment.any(1).all()  # what was grown last has none
        assert moment.any()
