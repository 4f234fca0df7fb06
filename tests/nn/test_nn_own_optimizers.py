"""Optimizers of torch and of a user's own as clients' optimizers, by name."""

import numpy as np
import pytest
import torch
from nn_cases import draw, small_resnet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mest_fed.errors import InputError
from mest_fed.memory import TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.nn import Mutator, SparseLayer
from mest_fed.nn.client_optimizer import REFERENCE, ClientOptimizer
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.sparsity import Bounds, MestEM
from mest_fed.system.peak_meter import can_measure


class Lion(ClientOptimizer):
    """Chen et al. 2023, as a user would write it."""

    def __init__(self, parameters, learning_rate, *, betas, weight_decay=0.0):
        super().__init__(parameters, learning_rate, weight_decay=weight_decay)
        self.betas = betas

    @property
    def keys(self):
        return ("average",)

    def update(self, parameters: list[Tensor], gradients: list[Tensor]):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            average = self.state[parameter]["average"]
            parameter.mul_(1 - self.learning_rate * self.weight_decay)
            parameter.sub_(
                average.lerp(gradient, 1 - self.betas[0]).sign(), alpha=self.learning_rate
            )
            average.lerp_(gradient, 1 - self.betas[1])


def rmsprop_of_mine(parameters, learning_rate):
    return torch.optim.RMSprop(parameters, learning_rate, centered=True)


def nothing(parameters, learning_rate):
    return {}


OWN = (f"{__file__}:Lion", f"{__file__}:rmsprop_of_mine", "torch.optim:Rprop", "torch.optim:NAdam")
OWN += ("torch.optim:Adagrad",)


def steps(net, optimizer, by_hand=None, count=3, dtype=torch.float64):
    for number in range(count):
        optimizer.zero_grad()
        x = draw(4, 1, 8, 8, seed=number, dtype=dtype)
        cross_entropy(net(x), torch.arange(4)).backward()
        if by_hand is not None:
            by_hand()
        optimizer.step()


def net_of():
    return small_resnet("block", norm="group").double().train()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        (OWN[1], lambda p: torch.optim.RMSprop(p, 0.01, centered=True)),
        ("torch.optim:Rprop", lambda p: torch.optim.Rprop(p, 0.01)),
        (
            "torch.optim:NAdam",
            lambda p: torch.optim.NAdam(p, 0.01, betas=(0.8, 0.99), weight_decay=0.1),
        ),
    ],
)
def test_with_the_proximal_term_and_clipping_it_is_a_hand_written_loop(name, theirs):
    ours, plain = net_of(), net_of()
    options = {"beta1": 0.8, "beta2": 0.99, "weight_decay": 0.1}
    settings = OptimizerSettings(0.01, name=name, proximal=0.3, clip_norm=0.5, **options)
    steps(ours, settings.build(ours))
    start = [parameter.detach().clone() for parameter in plain.parameters()]

    def by_hand():
        for parameter, old in zip(plain.parameters(), start, strict=True):
            parameter.grad += 0.3 * (parameter.detach() - old)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)

    steps(plain, theirs(plain.parameters()), by_hand)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_its_state_is_mutated(name):
    net = net_of()
    optimizer = OptimizerSettings(0.01, name=name, proximal=0.1).build(net)
    mutator = Mutator(net, MestEM(), optimizer)
    steps(net, optimizer)
    before = {
        layer: layer.slots.clone() for layer in net.modules() if isinstance(layer, SparseLayer)
    }
    mutator.mutate(Bounds(floor=0.5), lambda _: np.random.default_rng(7))
    start = {"torch.optim:Rprop": ("step_size", 0.01)}.get(name)
    for layer, slots in before.items():
        grown = ~torch.isin(layer.slots, slots)
        assert grown.any()
        state = optimizer.state[layer.values]
        assert not state[REFERENCE][grown].any()
        for key, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == layer.values.shape:
                expected = start[1] if start and key == start[0] else 0.0
                assert (tensor[grown] == expected).all(), key
    steps(net, optimizer)


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_its_state_is_charged(name, proximal):
    net = small_resnet("block", norm="group").train()
    options = {"optimizer": name, "proximal": proximal}
    shape = TrainingShape(0.25, "uniform", 2, 4, momentum=False, **options)
    predicted = footprint(trace_model(net, (1, 8, 8)), TrainingSetup(MestEM()), shape)
    settings = OptimizerSettings(0.01, name=name, proximal=0.1 * proximal)
    assert not settings.can_release
    optimizer = settings.build(net)
    steps(net, optimizer, count=1, dtype=torch.float32)
    kept = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    assert predicted.optimizer == sum(tensor.untyped_storage().nbytes() for tensor in kept)


def test_what_does_not_suit_is_refused():
    with pytest.raises(
        InputError, match=r"training.optimizer = 'torch.optim:LBFGS': LBFGS keeps vectors"
    ):
        OptimizerSettings(name="torch.optim:LBFGS").build(net_of())
    with pytest.raises(InputError, match=r"nothing' gives a dict; allowed: what gives"):
        OptimizerSettings(name=f"{__file__}:nothing").build(net_of())
    with pytest.raises(InputError, match=r"release_gradients = True.*'sgd'") as said:
        OptimizerSettings(name=OWN[1]).build(net_of(), release_gradients=True)
    assert "\n" not in str(said.value)


class ByNorm(ClientOptimizer):
    """Reads numbers in its step, which the meta device does not have."""

    @property
    def keys(self):
        return ("average",)

    def update(self, parameters, gradients):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient.norm().item() > 0:
                parameter.sub_(gradient, alpha=self.learning_rate)


def needs_numbers(parameters, learning_rate):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            if all(float(p.grad.sum()) == 0 for p in self.param_groups[0]["params"]):
                return
            super().step(closure)

    return Odd(parameters, learning_rate, momentum=0.5)


@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_one_that_needs_numbers_is_measured():
    net = small_resnet("block", norm="group").train()
    trace, setup = trace_model(net, (1, 8, 8)), TrainingSetup(MestEM())
    by_norm = TrainingShape(0.25, "uniform", 2, 4, False, optimizer=f"{__file__}:ByNorm")
    assert footprint(trace, setup, by_norm).optimizer > 0  # its state is made without a step
    shape = TrainingShape(0.25, "uniform", 2, 4, False, optimizer=f"{__file__}:needs_numbers")
    with pytest.warns(RuntimeWarning, match="measured instead"):
        assert footprint(trace, setup, shape).total > 0
