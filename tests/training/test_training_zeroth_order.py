"""Zeroth-order training: MeZO's step by hand, what moves, what does not, and by what passes."""

import numpy as np
import pytest
import torch
from torch import nn

from mest_fed.config import from_table
from mest_fed.data import Batch
from mest_fed.devices import StepWork, Work
from mest_fed.devices.forward_work import perturbed_step_work
from mest_fed.errors import InputError, NotFiniteError
from mest_fed.memory import MemoryOptions
from mest_fed.nn import SparseLayer, Sparsity, build_model
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.rng import numpy_generator, torch_generator
from mest_fed.task import Task
from mest_fed.training import ForgettingState
from mest_fed.training.directions import Directions, ProbedSteps, ZerothOrder, repeat_steps
from mest_fed.training.programs import Programs
from mest_fed.training.tasks import Regression
from mest_fed.training.zeroth_order import ZerothOrderTrainer


class Line(nn.Module):
    """Two weights: w0 + w1 x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x):
        return self.w[0] + self.w[1] * x


def trainer_of(model, rate=0.1, decay=0.0, seed=3, how=None, **more):
    settings = OptimizerSettings(rate, momentum=0.0, weight_decay=decay)
    more = {"micro_batch": 4, "how": how or ZerothOrder(), **more}
    return ZerothOrderTrainer(
        model, settings.build(model), rng=numpy_generator(seed, "directions"), **more
    )


def line_batch():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    return Batch(x, torch.tensor([[1.0], [0.0], [1.0]]), np.arange(3))


def line_loss(w):
    errors = [w[0] + w[1] * x - y for x, y in ((0, 1), (1, 0), (2, 1))]
    return sum(error**2 for error in errors) / 3


@pytest.mark.parametrize("perturbations", [1, 3])
def test_a_step_on_a_quadratic_by_hand(perturbations):
    how = ZerothOrder(0.5, perturbations)  # a central difference of a quadratic is exact
    model = Line()
    trainer = trainer_of(model, 0.1, 0.25, how=how, objective=Regression(loss="mse"))
    totals = trainer.fit([line_batch()])
    w = np.array([1.0, -2.0])
    seeds = numpy_generator(3, "directions").integers(2**63, size=perturbations)
    step, probes = np.zeros(2), []
    for seed in seeds:
        z = np.random.default_rng(int(seed)).standard_normal(2, np.float32).astype(np.float64)
        slope = (line_loss(w + 0.5 * z) - line_loss(w - 0.5 * z)) / (2 * 0.5)
        gradient = np.array([2 * (w[0] + w[1] - 2 / 3), 2 * (w[0] + 5 / 3 * w[1] - 2 / 3)])
        assert slope == pytest.approx(gradient @ z, rel=1e-6)
        probes.append(line_loss(w + 0.5 * z))
        step += slope * z / perturbations
    expected = (1 - 0.1 * 0.25) * (w - 0.1 * step)
    np.testing.assert_allclose(model.w.detach().numpy(), expected, rtol=1e-5)
    assert totals.loss / totals.count == pytest.approx(probes[0], rel=1e-5)
    assert totals.examples == 3
    assert model.w.grad is None


def test_micro_batches_do_not_change_a_step():
    found = []
    for micro_batch in (4, 1):
        model = Line()
        trainer_of(model, objective=Regression(loss="mse"), micro_batch=micro_batch).fit(
            [line_batch()] * 3
        )
        found.append(model.w.detach().numpy())
    np.testing.assert_allclose(*found, rtol=1e-4)


def small_model(scheme="block", norm="group", density=0.2):
    return build_model(
        "resnet8",
        (1, 8, 8),
        10,
        generator=torch_generator(1, "model"),
        width=0.25,
        norm=norm,
        sparsity=Sparsity(scheme, density),
    )


def small_batches(count=2, size=7):
    generator = torch_generator(2, "batches")
    images = torch.randn(count, size, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (count, size), generator=generator)
    return [Batch(x, y, np.arange(size)) for x, y in zip(images, labels, strict=True)]


@pytest.mark.parametrize("scheme", ["unstructured", "block", "block:3", "pattern", "channel"])
def test_active_weights_move_and_padding_stays_zero(scheme):
    model = small_model(scheme)
    before = {name: it.detach().clone() for name, it in model.named_parameters()}
    slots = {n: it.slots.clone() for n, it in model.named_modules() if isinstance(it, SparseLayer)}
    trainer_of(model, 0.01, programs=Programs(model)).fit(small_batches())
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter.detach(), before[name])
        assert parameter.grad is None
    padded = 0
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            assert torch.equal(layer.slots, slots[name])
            beyond = layer.layout.positions(layer.slots) >= layer.layout.num_weights
            assert not layer.values.detach()[beyond].any()
            padded += int(beyond.sum())
    assert (padded > 0) == (scheme == "block:3")


def test_programs_and_torch_take_the_same_step():
    found = []
    for programs in (True, False):
        model = small_model()
        trainer = trainer_of(model, 0.01, programs=Programs(model) if programs else None)
        totals = trainer.fit(small_batches(4))
        found.append((model, totals.loss))
    (compiled, loss), (plain, same) = found
    assert loss == pytest.approx(same, rel=1e-4)
    for one, two in zip(compiled.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), two.detach().numpy(), atol=2e-4)


def test_what_is_frozen_stays():
    model = small_model()
    stem = model.conv1.weight.detach().clone()
    head = model.classifier.weight.detach().clone()
    trainer_of(model, 0.01, memory=MemoryOptions(frozen=1)).fit(small_batches())
    assert torch.equal(model.conv1.weight.detach(), stem)
    assert not torch.equal(model.classifier.weight.detach(), head)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_with_batch_statistics_go_forward_as_in_training():
    model = small_model(norm="batch")
    trainer = trainer_of(model, 0.01, programs=Programs(model))
    before = model.norm1.running_mean.clone()
    trainer.fit(small_batches())
    assert model.training
    assert trainer.programs is None
    assert not torch.equal(model.norm1.running_mean, before)
    group = small_model()
    trainer_of(group, 0.01).fit(small_batches())
    assert not group.training


def test_directions_are_their_seeds_alone():
    model = small_model()
    directions = Directions(model)
    before = [it.detach().clone() for it in model.parameters()]
    directions.move(7, 0.5)
    moved = [it.detach() - old for it, old in zip(model.parameters(), before, strict=True)]
    directions.move(7, -0.5)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old)
    flat = torch.cat([it.flatten() for it in moved])
    assert len(flat) == directions.weights
    assert float(flat.std()) == pytest.approx(0.5, rel=0.1)


def test_forgetting_counts_each_presentation_once():
    state = ForgettingState.fresh(7)
    trainer_of(small_model(), 0.01, how=ZerothOrder(1e-3, 2), forgetting=state).fit(small_batches())
    assert len(state.codes) == 7


def test_a_loss_that_is_not_finite_is_named():
    model = Line()
    with torch.no_grad():
        model.w[0] = float("inf")
    trainer = trainer_of(model, objective=Regression(loss="mse"))
    with pytest.raises(NotFiniteError, match=r"^batch 1: the loss is"):
        trainer.fit([line_batch()])


def test_two_passes_a_perturbation_are_counted():
    forward = StepWork(Work(dense_flops=10.0), Work(core_seconds=1.0), Work())
    step = perturbed_step_work(forward, 0, 3)
    assert step.of_batch(8, 4) == Work(dense_flops=6 * 80.0, core_seconds=6 * 2.0)
    model = Line()
    trainer = trainer_of(model, objective=Regression(loss="mse"), costs=lambda: forward)
    trainer.fit([line_batch()] * 2)
    assert trainer.work.dense_flops == 2 * 2 * 3 * 10.0


def task_of(training=(), **sections):
    training = {"gradient": "zeroth-order", "device": "cpu", **dict(training)}
    table = {"model": {"name": "resnet8", "width": 0.25}, "training": training, **sections}
    return Task(from_table(table, "test"))


def test_a_plan_charges_a_forward_pass_alone():
    task, backward = task_of(), task_of({"gradient": "backward"})
    plan, other = (it.planner().plan(10**9) for it in (task, backward))
    assert plan.footprint.gradients == plan.footprint.optimizer == 0
    assert plan.footprint.activations < other.footprint.activations / 2
    assert plan.footprint.total < other.footprint.total
    smallest = task.planner().smallest()
    assert smallest.micro_batch == 1
    assert smallest.memory == task.config.memory.options
    assert task.why_torch({}) is None
    by_torch = task_of(model={"name": "resnet8", "width": 0.25, "norm": "batch"})
    assert "statistics over a batch" in by_torch.why_torch({})
    assert by_torch.planner().plan(10**9).footprint.gradients == 0


@pytest.mark.parametrize(
    ("training", "sections", "named"),
    [
        ({"optimizer": "adam"}, {}, r"training.optimizer = 'adam'"),
        ({"clip_norm": 1.0}, {}, r"training.clip_norm = 1.0"),
        ({"proximal": 0.1}, {}, r"training.proximal = 0.1"),
        ({}, {"memory": {"recompute": "norms"}}, r"memory.recompute = 'norms'"),
        ({}, {"memory": {"release_gradients": True}}, r"memory.release_gradients = True"),
        ({}, {"sparsity": {"mutation": "client"}}, r"allowed: sparsity.mutation = 'server'"),
        ({"perturbations": 0}, {}, r"training.perturbations = 0"),
        ({"epsilon": 0.0}, {}, r"training.epsilon = 0"),
    ],
)
def test_what_needs_gradients_is_refused(training, sections, named):
    with pytest.raises(InputError, match=named):
        task_of(training, **sections)


@pytest.mark.parametrize("perturbations", [1, 3])
def test_slopes_alone_repeat_the_steps(perturbations):
    """Where the weights went follows from the seeds and the slopes, bit for bit."""
    how = ZerothOrder(1e-2, perturbations)
    trained, other = small_model(), small_model()
    trainer = trainer_of(trained, 0.05, 0.1, how=how)
    trainer.fit(small_batches())
    assert len(trainer.slopes) == perturbations * len(list(small_batches()))
    assert [float(np.float32(it)) for it in trainer.slopes] == trainer.slopes
    steps = ProbedSteps(
        other, how, numpy_generator(3, "directions"), learning_rate=0.05, weight_decay=0.1
    )
    repeat_steps(steps, trainer.slopes)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    repeat_steps(steps, [-it for it in trainer.slopes])
    assert not torch.equal(next(trained.parameters()), next(other.parameters()))
