"""Whole steps of the built-in models as programs, against torch in float64."""

import copy

import numpy as np
import pytest
import torch
from step_cases import (
    BATCH,
    RATE,
    STEPS,
    TOKENS,
    UNSTRUCTURED,
    distance,
    dtype_of,
    inputs_of,
    model_of,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from mest_fed.catalogue import MODELS
from mest_fed.errors import InputError
from mest_fed.nn import sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.nn.optimizers import SGD
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.step import CompiledStep
from mest_fed.sparsity.schemes import Channel
from mest_fed.training.step_program import step_program
from mest_fed.training.tasks import (
    REGRESSION_LOSSES,
    Classification,
    MultiLabel,
    NextToken,
    Regression,
)

#: Of the largest weight or gradient: rounding of float64 through tens of layers, and of float32.
EXACT, SINGLE = 1e-10, 1e-3


def torch_step(model, optimizer, inputs):
    """Take a step of torch, and return loss and gradients."""
    logits = model(torch.as_tensor(inputs["input"]))
    targets = torch.as_tensor(inputs["targets"])
    loss = cross_entropy(logits.flatten(0, -2), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    gradients = {name: it.grad.clone().numpy() for name, it in model.named_parameters()}
    optimizer.step()
    return loss.item(), gradients


def held(model):
    """Return parameters and floating-point buffers by name."""
    both = (*model.named_parameters(), *model.named_buffers())
    return {name: it.detach().numpy() for name, it in both if it.is_floating_point()}


def like(reference, theirs):
    """Read what a program holds under the names of others, in their shapes."""
    return {name: reference.read(name).reshape(it.shape) for name, it in theirs.items()}


@pytest.mark.parametrize("name", STEPS)
def test_two_steps_of_a_model(name):
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    settings = OptimizerSettings(momentum=0.9, weight_decay=0.01)
    inputs = (BATCH, *shape), dtype_of(shape)
    program, captured = step_program(model, inputs, Classification(), settings)
    assert parse_program(program.to_json()).sha256 == program.sha256
    values = captured.arrays()
    exact, single = Reference(program, values, "float64"), Reference(program, values)
    in_arena = Reference(program, values, arena=plan_arena(program))
    twin = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(twin.parameters(), RATE, 0.9, weight_decay=0.01)
    for step in range(2):
        given = inputs_of(shape, seed=step)
        before = held(twin)
        before = {it: array.copy() for it, array in before.items()}
        loss, gradients = torch_step(twin, optimizer, given)
        for run in (exact, single, in_arena):
            run.step(given)
        assert exact.read("loss") == pytest.approx(loss, rel=EXACT)
        assert distance(like(exact, held(twin)), held(twin)) < EXACT
        if step == 0:
            moved = {it: before[it] * 0.01 + gradients[it] for it in gradients}
            momenta = {
                it: exact.read(f"{it}:momentum_buffer").reshape(moved[it].shape) for it in moved
            }
            assert distance(momenta, moved) < EXACT
            assert distance(like(single, held(twin)), held(twin)) < SINGLE
    for number in program.of_role("parameter", "state", "output"):
        label = program.buffers[number].name
        np.testing.assert_array_equal(in_arena.read(label), single.read(label), err_msg=label)


def test_every_built_in_model_is_a_program():
    assert {name.split()[0] for name in STEPS} == set(MODELS)


def test_the_next_token_at_each_position():
    model = model_of("transformer", TOKENS, {"width": 0.25}, UNSTRUCTURED, TOKENS)
    settings = OptimizerSettings(name="adamw", weight_decay=0.1, beta1=0.8, beta2=0.9)
    inputs = (BATCH, *TOKENS), torch.int64
    program, captured = step_program(model, inputs, NextToken(), settings)
    assert any(it.attributes.get("causal") for it in program.operators)
    exact = Reference(program, captured.arrays(), "float64")
    twin = copy.deepcopy(model).double()
    options = {"betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(twin.parameters(), RATE, **options)
    given = inputs_of(TOKENS, TOKENS)
    loss, _ = torch_step(twin, optimizer, given)
    exact.step(given)
    assert exact.read("loss") == pytest.approx(loss, rel=EXACT)
    # a step of Adam is the sign of a gradient, which may be rounding: 1e-8 in the denominator
    assert distance(like(exact, held(twin)), held(twin)) < 1e-6


class Users(nn.Module):
    """Branches, shared weights, a frozen layer, activations and pools of all kinds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(4)
        self.silu, self.swish, self.gelu = nn.SiLU(), nn.Hardswish(), nn.GELU()
        self.average, self.pool = nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
        self.layer_norm, self.flat = nn.LayerNorm(4), nn.Flatten()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = self.silu(self.conv(x))
        y = y * self.swish(self.frozen(y)) + self.conv(y)
        y = torch.relu(self.norm(y + x)) + torch.nn.functional.gelu(y)
        y = self.flat(self.pool(self.average(y)))
        y = self.layer_norm(self.linear(y)).view(len(x) if isinstance(x, torch.Tensor) else -1, 4)
        return self.linear(y).squeeze(-1)


class Mobile(nn.Module):
    """Squeeze and excite, joined branches, sums with numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.up, self.leaky, self.elu = nn.Upsample(scale_factor=2), nn.LeakyReLU(0.1), nn.ELU(0.5)
        self.largest, self.linear = nn.AdaptiveMaxPool2d(2), nn.Linear(48, 4)

    def forward(self, x):
        y = self.leaky(self.conv(x))
        y = y * torch.sigmoid(self.narrow(y.mean((2, 3), keepdim=True)))
        y = torch.cat([y, 1 - self.elu(self.narrow(y)) / 2], 1)
        z = self.largest(self.up(y))
        excited = y.sum((2, 3)).tanh().view(-1, 12, 1, 1) * 2 + 3.5
        z = z - z * F.relu6(excited) / 6
        return self.linear(z.flatten(1))


class Sequences(nn.Module):
    """Moved axes and recurrent layers, of which positions and last states are read."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.Softmax(-1), nn.Linear(9, 4)
        self.gru, self.lstm = nn.GRU(4, 5, batch_first=True), nn.LSTM(5, 4, 2, batch_first=True)

    def forward(self, x):
        y, last = self.gru(self.norm(x.transpose(1, 2)))
        z, (hidden, _) = self.lstm(-y)
        both = torch.cat([hidden[0] - z[:, 1], last[0]], -1)
        return self.linear(both)


class OwnScheme(Channel):
    def __init__(self, shape):
        super().__init__(shape, axis="in")


def InputChannels():
    """Return layers of some input channels alone."""
    layers = nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3), nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3)
    model = sparsify(nn.Sequential(*layers), f"{__name__}:OwnScheme", 0.4)
    return model


class Sharing(nn.Module):
    """Two sums whose gradient is one, and an output that is read twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        y = self.a(x)
        z = y + y
        w = z + y
        return (w + z) * self.b(w) + y


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (Users, (4, 5, 5)),
        (Sharing, (3,)),
        (Mobile, (4, 5, 5)),
        (Sequences, (4, 3)),
        (InputChannels, (4, 5, 5)),
    ],
)
def test_gradients_of_a_user_s_module(kind, shape):
    torch.manual_seed(0)
    model = kind()
    program, captured = step_program(
        model, ((BATCH, *shape), torch.float32), Classification(), OptimizerSettings(momentum=0.0)
    )
    exact = Reference(program, captured.arrays(), "float64")
    twin = copy.deepcopy(model).double()
    trained = {name: it for name, it in twin.named_parameters() if it.requires_grad}
    given = inputs_of(shape)
    given["targets"] = given["targets"] % 3
    loss = cross_entropy(twin(torch.as_tensor(given["input"])), torch.as_tensor(given["targets"]))
    found = torch.autograd.grad(loss, list(trained.values()))
    exact.step(given)
    theirs = {
        name: (it - RATE * (1e-4 * it + grad)).detach().numpy()
        for (name, it), grad in zip(trained.items(), found, strict=True)
    }
    assert exact.read("loss") == pytest.approx(loss.item(), rel=EXACT)
    assert distance(like(exact, theirs), theirs) < EXACT
    single, native = Reference(program, captured.arrays()), CompiledStep(program)
    in_arena = Reference(program, captured.arrays(), arena=plan_arena(program))
    for name, array in captured.arrays().items():
        native.load(name, array)
    for run in (single, in_arena):
        run.step(given)
    assert native.step(given["input"], given["targets"], RATE) == pytest.approx(
        loss.item(), rel=1e-5
    )
    for name in theirs:
        np.testing.assert_array_equal(in_arena.read(name), single.read(name), err_msg=name)
        np.testing.assert_allclose(native.arrays[name], single.read(name), rtol=1e-4, atol=1e-5)
    assert set(captured.trained) == set(trained)
    updated = {program.buffers[it.inputs[2]].name for it in program.operators if it.name == "sgd"}
    assert updated == set(trained)


def test_dropout_draws_from_its_seed_alone():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 3), nn.Dropout(0.25))
    settings = OptimizerSettings()
    inputs = (2, 40), torch.float32
    program, captured = step_program(model, inputs, Classification(), settings)
    seeds = [program.buffers[it].name for it in program.of_role("setting")]
    assert seeds[:2] == ["0:seed", "2:seed"]
    given = {"input": np.ones((2, 40)), "targets": [0, 1], "rates": [0.1], "share": [0.5]}
    losses = []
    for seed in (1, 1, 2):
        run = Reference(program, captured.arrays())
        run.step(given | {"0:seed": [seed], "2:seed": [7]})
        losses.append(float(run.read("loss")))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("task", [*map(Regression, REGRESSION_LOSSES), MultiLabel()])
def test_the_loss_of_numbers(task):
    torch.manual_seed(0)
    model, settings = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh()), OptimizerSettings(momentum=0.0)
    program, captured = step_program(model, ((BATCH, 2, 3, 3), torch.float32), task, settings)
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(BATCH, 2, 3, 3)), rng.random((BATCH, 12))
    exact, twin = Reference(program, captured.arrays(), "float64"), copy.deepcopy(model).double()
    loss = task.losses(twin(torch.as_tensor(x)), torch.as_tensor(targets)).mean()
    found = torch.autograd.grad(loss, list(twin.parameters()))
    exact.step({"input": x, "targets": targets, "share": [1 / BATCH], "rates": [RATE]})
    assert exact.read("loss") == pytest.approx(loss.item(), rel=EXACT)
    theirs = {
        name: (it - RATE * (1e-4 * it + grad)).detach().numpy()
        for (name, it), grad in zip(twin.named_parameters(), found, strict=True)
    }
    assert distance(like(exact, theirs), theirs) < EXACT


@pytest.mark.parametrize(("clip_norm", "proximal"), [(0.1, 0.0), (0.0, 0.5), (0.1, 0.5), (9.0, 0)])
def test_gradients_are_clipped_and_drawn_as_by_the_client(clip_norm, proximal):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    settings = OptimizerSettings(clip_norm=clip_norm, proximal=proximal, momentum=0.9)
    inputs = (BATCH, 4), torch.float32
    program, captured = step_program(model, inputs, Classification(), settings)
    twin = copy.deepcopy(model).double()
    references = {f"{name}:reference": it for name, it in captured.arrays().items() if proximal}
    exact = Reference(program, {**captured.arrays(), **references}, "float64")
    keys = {"momentum": 0.9, "weight_decay": settings.weight_decay}
    optimizer = SGD(twin.parameters(), RATE, clip_norm=clip_norm, proximal=proximal, **keys)
    for step in range(3):
        given = inputs_of((4,), seed=step)
        given["targets"] = given["targets"] % 3
        torch_step(twin, optimizer, given)
        exact.step(given)
        assert distance(like(exact, held(twin)), held(twin)) < EXACT


class OwnTask(Classification):
    pass


def test_what_a_program_has_not_is_one_line():
    model, inputs = nn.Linear(3, 2), ((2, 3), torch.float32)
    with pytest.raises(InputError, match=r"task.name = 'OwnTask' is not allowed"):
        step_program(model, inputs, OwnTask(), OptimizerSettings())
    with pytest.raises(InputError, match=r"task.options.ignore = 0 is not allowed"):
        step_program(model, inputs, NextToken(ignore=0), OptimizerSettings())
    with pytest.raises(InputError, match=r"training.optimizer = 'torch.optim:SGD' is not allowed"):
        step_program(model, inputs, Classification(), OptimizerSettings(name="torch.optim:SGD"))


def test_gradients_need_a_loss_and_parameters():
    model = model_of("mlp", (3, 4), {"width": 0.1}, None)
    settings = OptimizerSettings()
    program, captured = step_program(model, ((2, 3, 4), torch.float32), Classification(), settings)
    assert program.phases[2] > 0
    with pytest.raises(InputError, match="a program without a loss has no gradients"):
        with_gradients(captured.program)
    with pytest.raises(InputError, match="output = 'none' is not allowed"):
        with_loss(captured.program, "none")
    forward = with_loss(captured.program, captured.output)
    with pytest.raises(InputError, match="trained = 'input' is not allowed"):
        with_gradients(forward, ["input"])
    last = with_gradients(forward, ["classifier.bias"])
    names = [it.name for it in last.program.operators[forward.phases[0] :]]
    assert names == ["cross_entropy_gradient", "bias_gradient"]
