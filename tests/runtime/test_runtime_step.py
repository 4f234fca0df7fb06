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
from torch.nn.functional import cross_entropy

from mest_fed.catalogue import MODELS
from mest_fed.errors import InputError
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference
from mest_fed.training.step_program import step_program
from mest_fed.training.tasks import Classification, MultiLabel, NextToken

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


def test_every_built_in_model_is_a_program_or_is_refused():
    steps = {name.split()[0] for name in STEPS}
    assert steps | {"lstm"} == set(MODELS)
    model = model_of("lstm", TOKENS, {"width": 0.1}, None)
    with pytest.raises(InputError, match=r"^module 'lstm', a LSTM, has no operator"):
        step_program(model, ((2, *TOKENS), torch.int64), Classification(), OptimizerSettings())


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


@pytest.mark.parametrize(("kind", "shape"), [(Users, (4, 5, 5)), (Sharing, (3,))])
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


def test_what_a_program_has_not_is_one_line():
    model, inputs = nn.Linear(3, 2), ((2, 3), torch.float32)
    with pytest.raises(InputError, match=r"task.name = 'MultiLabel' is not allowed"):
        step_program(model, inputs, MultiLabel(), OptimizerSettings())
    with pytest.raises(InputError, match=r"training.clip_norm = 1.0 is not allowed"):
        step_program(model, inputs, Classification(), OptimizerSettings(clip_norm=1.0))
    with pytest.raises(InputError, match=r"training.proximal = 0.1 is not allowed"):
        step_program(model, inputs, Classification(), OptimizerSettings(proximal=0.1))
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
