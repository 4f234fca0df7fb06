"""Training with memory options: whole rounds, mutation included, are those without."""

import math

import numpy as np
import pytest
import torch
from training_cases import batches, model

from mest_fed.memory import RECOMPUTE, MemoryOptions
from mest_fed.nn import mask_groups
from mest_fed.nn.client_optimizer import MOMENTUM
from mest_fed.sparsity import MestEM, MestEMS, RigL
from mest_fed.training import LocalMutation, LocalTrainer, OptimizerSettings, RoundMutation

SETTINGS = OptimizerSettings(0.05, 0.9, 1e-3)


def train(memory, *, scheme="block", norm="group", method=None, steps=4, settings=SETTINGS):
    """Train a round in micro-batches of 3 of 8; return the model, the optimizer and the totals."""
    net = model(scheme, norm=norm).double()
    optimizer = settings.build(net, release_gradients=memory.release_gradients)
    mutation = None
    if method is not None:
        what = RoundMutation(method, progress=0.1, seed=0, round=3)
        mutation = LocalMutation(net, optimizer, what, steps)
    trainer = LocalTrainer(net, optimizer, micro_batch=3, memory=memory)
    totals = trainer.fit(batches(steps, dtype=torch.float64), mutation)
    optimizer.close()
    return net, optimizer, totals


def same(ours, expected):
    (net, _, totals), (plain, _, plain_metrics) = ours, expected
    assert totals.loss == pytest.approx(plain_metrics.loss, rel=1e-9)
    assert (totals.sums, totals.examples) == (plain_metrics.sums, plain_metrics.examples)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(
            net.state_dict()[name], tensor, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.soak
@pytest.mark.parametrize("method", [None, MestEM(), MestEMS(), RigL()])
@pytest.mark.parametrize("scheme", ["unstructured", "channel"])
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_a_round_with_savings_is_the_round_without(recompute, scheme, method):
    expected = train(MemoryOptions(), scheme=scheme, method=method)
    same(
        train(
            MemoryOptions(recompute, "mask", release_gradients=True), scheme=scheme, method=method
        ),
        expected,
    )
    if scheme == "unstructured" and type(method) in (MestEM, RigL):  # there was a mutation
        first, last = (mask_groups(net)[0].mask.slots for net in (model(scheme), expected[0]))
        assert not np.array_equal(first, last)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_consuming_is_exact_whatever_the_optimizer(norm, momentum, decay):
    settings = OptimizerSettings(0.05, momentum, decay)
    expected = train(MemoryOptions(), norm=norm, settings=settings)
    ours = train(MemoryOptions("segments", release_gradients=True), norm=norm, settings=settings)
    same(ours, expected)
    assert all(parameter.grad is None for parameter in ours[0].parameters())
    assert any(MOMENTUM in state for state in ours[1].state.values()) is (momentum > 0)


@pytest.mark.parametrize(("method", "kept"), [(MestEM(), {1}), (MestEMS(), {3}), (None, set())])
def test_gradients_stay_in_the_step_whose_mutation_reads_them_alone(method, kept):
    net = model("block")
    optimizer = SETTINGS.build(net, release_gradients=True)
    step, seen = optimizer.step, []

    def noting_step():
        seen.append(all(parameter.grad is not None for parameter in net.parameters()))
        step()

    optimizer.step = noting_step
    mutation = None
    if method is not None:
        mutation = LocalMutation(net, optimizer, RoundMutation(method, 0.1, seed=0, round=3), 4)
    LocalTrainer(net, optimizer, micro_batch=3).fit(batches(4), mutation)
    assert {number for number, whole in enumerate(seen) if whole} == kept


def test_frozen_blocks_stay_and_the_rest_trains():
    net, _, _ = train(MemoryOptions("segments", release_gradients=True, frozen=2))
    before = model("block").double().state_dict()
    after = net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("stage2", "stage3", "class"))} - {
        name for name in before if name.endswith("slots")
    }


def test_fewer_bits_still_learn():
    losses = [train(MemoryOptions("segments", "int8"), steps=n)[2].mean_loss for n in (1, 12)]
    assert losses[1] < math.log(10) + 0.3
    exact = train(MemoryOptions(), steps=12)[2].mean_loss
    assert losses[1] == pytest.approx(exact, rel=0.05)


def test_without_momentum_steps_are_as_long_in_the_long_run():
    settings = SETTINGS.without_momentum()
    assert settings.learning_rate == pytest.approx(0.5)
    assert (settings.momentum, settings.weight_decay) == (0.0, 1e-3)
