"""The local trainer against a plain torch loop; micro-batches; tallies; evaluation."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import Constant, batches, model

from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.nn import Mutator, mask_groups
from mest_fed.sparsity import Bounds, RigL
from mest_fed.training import (
    CLASSIFICATION,
    ForgettingState,
    LocalTrainer,
    Metrics,
    OptimizerSettings,
    choose_device,
    evaluate,
    judge,
    learning_rate,
)

SETTINGS = OptimizerSettings(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


def gradients_after(net, batch, micro_batch):
    """Return all gradients of one batch; the step itself is of size zero."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    LocalTrainer(net, optimizer, micro_batch=micro_batch).fit([batch])
    return {name: parameter.grad for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("scheme", [None, "block", "channel"])
@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8, 100])
def test_micro_batches_accumulate_the_gradient_of_the_whole_batch(scheme, micro_batch):
    (batch,) = batches(1, size=11, dtype=torch.float64)
    net = model(scheme).double()
    nn.functional.cross_entropy(net(batch.inputs), batch.targets).backward()
    whole = {name: p.grad.clone() for name, p in net.named_parameters()}
    parts = gradients_after(net, batch, micro_batch)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, msg=name)
    assert any(gradient.any() for gradient in whole.values())


def test_batch_norm_takes_the_statistics_of_each_micro_batch():
    (batch,) = batches(1, size=8, dtype=torch.float64)
    net = model(norm="batch").double()
    whole, parts = gradients_after(net, batch, 8), gradients_after(net, batch, 4)
    assert not torch.allclose(parts["conv1.weight"], whole["conv1.weight"], rtol=1e-3)


def test_micro_batches_are_even():
    sizes = []
    net = model()
    net.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    (batch,) = batches(1, size=9)
    gradients_after(net, batch, 8)
    assert sizes == [5, 4]


@pytest.mark.parametrize("scheme", [None, "pattern"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_five_steps_are_those_of_a_plain_loop(scheme, norm):
    ours, plain = (model(scheme, norm=norm).double() for _ in range(2))
    data = batches(5, dtype=torch.float64)
    LocalTrainer(ours, SETTINGS.build(ours), micro_batch=8).fit(data)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    plain.train()
    for batch in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(batch.inputs), batch.targets).backward()
        optimizer.step()
    expected = plain.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not torch.equal(expected["conv1.weight"], model().double().conv1.weight)


def test_one_step_by_hand():
    # Logits 0, 0: the gradient of the mean loss over labels 0, 0, 1 is (1/2 - 2/3, 1/2 - 1/3).
    net = Constant([0.0, 0.0])
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 0, 1]), np.arange(3))
    optimizer = OptimizerSettings(learning_rate=6.0, momentum=0.0, weight_decay=0.0).build(net)
    totals = LocalTrainer(net, optimizer, micro_batch=2).fit([batch])
    assert net.logits.tolist() == pytest.approx([1.0, -1.0])
    assert totals.examples == 3
    assert totals.mean_loss == pytest.approx(math.log(2))


def test_a_tally_is_taken_before_the_update():
    net = Constant([1.0, 0.0])
    batch = Batch(torch.zeros(4, 1), torch.tensor([1, 1, 1, 0]), np.arange(4))
    optimizer = OptimizerSettings(learning_rate=8.0, momentum=0.0, weight_decay=0.0).build(net)
    trainer = LocalTrainer(net, optimizer, micro_batch=4)
    first = trainer.fit([batch])
    assert (first.sums, first.examples) == ({"correct": 1}, 4)
    assert first.values(CLASSIFICATION)["accuracy"] == 0.25
    second = trainer.fit([batch, batch])
    assert second.examples == 8
    assert second.sums["correct"] >= 3  # the first of the two was met after one update


def test_an_empty_tally_has_no_mean():
    assert math.isnan(Metrics().mean_loss)
    assert Metrics().values(CLASSIFICATION) == {}
    assert (
        LocalTrainer(model(), torch.optim.SGD([nn.Parameter()]), micro_batch=1).fit([]) == Metrics()
    )


def test_training_puts_the_model_into_training_mode_and_evaluation_out_of_it():
    net = model().eval()
    LocalTrainer(net, SETTINGS.build(net), micro_batch=8).fit(batches(1))
    assert net.training
    evaluate(net, batches(1))
    assert not net.training


def test_momentum_and_weight_decay_reach_the_optimizer():
    optimizer = OptimizerSettings(0.3, 0.7, 0.01).build(model())
    assert (optimizer.learning_rate, optimizer.momentum) == (0.3, 0.7)
    assert optimizer.weight_decay == 0.01


def test_without_momentum_the_optimizer_keeps_nothing():
    net = model("block")
    optimizer = OptimizerSettings(momentum=0.0).build(net)
    LocalTrainer(net, optimizer, micro_batch=4).fit(batches(2))
    kept = [entry for state in optimizer.state.values() for entry in state.values()]
    assert not any(isinstance(entry, torch.Tensor) for entry in kept)


def test_dense_gradients_of_micro_batches_add_up_for_rigl():
    (batch,) = batches(1, dtype=torch.float64)
    seen = []
    for micro_batch in (8, 3):
        net = model("unstructured").double()
        Mutator(net, RigL()).keep_dense_gradients(True)
        gradients_after(net, batch, micro_batch)
        seen.append(mask_groups(net)[0].layers[0].dense_gradient)
    torch.testing.assert_close(*seen)


def test_the_forgetting_state_sees_each_presentation_in_its_place():
    net = Constant([1.0, 0.0])
    state = ForgettingState.fresh(6)
    optimizer = OptimizerSettings(learning_rate=0.0, momentum=0.0, weight_decay=0.0).build(net)
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 1, 0]), np.array([5, 0, 2]))
    LocalTrainer(net, optimizer, micro_batch=2, forgetting=state).fit([batch])
    assert state.learned.tolist() == [False, False, True, False, False, True]


def test_evaluation_by_hand():
    net = Constant([1.0, 0.0])
    data = [
        Batch(torch.zeros(2, 1), torch.tensor([0, 1]), np.arange(2)),
        Batch(torch.zeros(1, 1), torch.tensor([0]), np.array([2])),
    ]
    totals = evaluate(net, data)
    assert judge(net, data).tolist() == [True, False, True]
    losses = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1)), math.log(1 + math.exp(-1))]
    assert totals.loss == pytest.approx(sum(losses))
    assert (totals.sums, totals.examples, totals.count) == ({"correct": 2}, 3, 3)
    assert net.logits.grad is None


def test_evaluation_of_nothing():
    assert evaluate(model(), []) == Metrics()
    assert judge(model(), []).shape == (0,)


def test_evaluation_leaves_the_model_as_it_is():
    net = model("block", norm="batch")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluate(net, batches(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_micro_batch_holds_at_least_one_image():
    net = model()
    with pytest.raises(InputError, match="micro_batch = 0 is not allowed; allowed: a whole number"):
        LocalTrainer(net, SETTINGS.build(net), micro_batch=0)


def test_devices_by_name(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"training\.device = 'tpu' .*: auto, cpu, cuda"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="this machine has no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2]),
        ("cosine", [0.2, 0.1, 0.1 * (1 - math.sqrt(0.5)), 0.0]),
        ("step", [0.2, 0.02, 0.002, 0.002]),
    ],
)
def test_learning_rates(schedule, expected):
    rates = [learning_rate(schedule, 0.2, progress) for progress in (0, 0.5, 0.75, 1)]
    assert rates == pytest.approx(expected)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(
        InputError, match=r"training\.schedule = 'linear' .*: constant, cosine, step"
    ):
        learning_rate("linear", 0.1, 0.0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
def test_training_and_mutation_on_cuda_are_those_on_the_cpu(scheme):
    nets = []
    for device in ("cpu", "cuda"):
        net = model(scheme).double().to(device)
        optimizer = SETTINGS.build(net)
        trainer = LocalTrainer(net, optimizer, micro_batch=4)
        for bounds in (Bounds(ceiling=1.5), Bounds(floor=0.7)):
            trainer.fit(batches(1, dtype=torch.float64))
            mutator = Mutator(net, RigL(), optimizer)
            mutator.keep_dense_gradients(True)
            trainer.fit(batches(1, dtype=torch.float64))
            mutator.mutate(bounds, lambda name: np.random.default_rng(0))
        totals = evaluate(net, batches(1, dtype=torch.float64))
        nets.append((net.cpu(), totals))
    (first, one), (second, two) = nets
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, msg=name)
    assert one.loss == pytest.approx(two.loss)
