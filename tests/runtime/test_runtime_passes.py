"""Passes that put several operators into one: what they replace, and that nothing else changes."""

import json

import numpy as np
import pytest
import torch
from native_cases import compute
from step_cases import BLOCK, UNSTRUCTURED, distance
from torch import nn

from mest_fed.nn import sparsify
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.gradients import with_gradients, with_loss
from mest_fed.runtime.passes.pooling import with_pooling
from mest_fed.runtime.passes.updates import with_direct_updates
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.step_program import PASSES, StepPrograms
from mest_fed.training.tasks import Classification

SETTINGS = OptimizerSettings(momentum=0.9, weight_decay=0.01)
BATCH, IMAGE = 3, (2, 9, 8)


def convolution(*behind):
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), *behind, nn.Flatten(), nn.Linear(80, 4))


POOL = nn.MaxPool2d(2)
#: Model -> the operators that a convolution and what is behind it become.
MODELS = {
    "relu, pool": (lambda: convolution(nn.ReLU(), POOL), 1),
    "pool, relu": (lambda: convolution(POOL, nn.ReLU()), 1),
    "two": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1, bias=False),
            nn.ReLU(),
            POOL,
            nn.Conv2d(5, 9, (2, 3), padding=1),
            nn.ReLU(),
            POOL,
            nn.Flatten(),
            nn.Linear(36, 6),
            nn.Linear(6, 4),
        ),
        2,
    ),
    "no relu": (lambda: convolution(POOL), 0),
    "other windows": (lambda: convolution(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))[:3], 0),
}


def program_of(model, settings=SETTINGS, **options):
    """Return the step of a batch that is one group, and what was captured."""
    example = IMAGE, torch.float32
    options = {"groups": False, "passes": (), **options}
    programs = StepPrograms(model.train(), example, Classification(), settings, **options)
    captured = programs.captured(BATCH)
    return programs.of(captured), captured


def model_of(name, sparsity=None):
    torch.manual_seed(0)
    model = MODELS[name][0]()
    if name == "other windows":
        model = nn.Sequential(*model, nn.Flatten(), nn.Linear(100, 4))
    if sparsity is not None:
        sparsify(model, sparsity.scheme, sparsity.density)  # all layers but the first and last
    return model


def inputs_of(seed):
    rng = np.random.default_rng(seed)
    x, targets = rng.normal(size=(BATCH, *IMAGE)), rng.integers(0, 4, BATCH)
    return {"input": x, "targets": targets, "rates": [0.1], "share": [1 / BATCH]}


def trained(program, values, steps=2):
    """Return losses and parameters after some steps of the reference, which is exact."""
    reference = Reference(program, values, "float64")
    losses = []
    for number in range(steps):
        reference.step(inputs_of(number))
        losses.append(float(reference.read("loss")))
    held = program.of_role("parameter", "state")
    return losses, {program.buffers[it].name: reference.arrays[it] for it in held}


def names(program):
    return [it.name for it in program.operators]


CASES = [*((name, None) for name in MODELS), ("two", BLOCK), ("two", UNSTRUCTURED)]
SPARSITIES = pytest.mark.parametrize(
    "sparsity", [None, BLOCK, UNSTRUCTURED], ids=["dense", "block", "unstructured"]
)


@pytest.mark.parametrize(("name", "sparsity"), CASES)
def test_pooling_replaces_chains_and_changes_nothing_else(name, sparsity):
    program, captured = program_of(model_of(name, sparsity))
    pooled = with_pooling(program)
    count, sparse = MODELS[name][1], int(sparsity is not None)
    for ending in ("conv2d_relu_pool", "conv2d_relu_pool_gradient"):
        found = names(pooled).count(ending), names(pooled).count(f"sparse_{ending}")
        assert found == (count - sparse, sparse)
    if count == 0:
        assert pooled is program
        return
    left = {"relu", "relu_gradient", "max_pool2d", "max_pool2d_gradient", "bias_gradient"}
    assert left.intersection(names(pooled)) == {"bias_gradient"}  # of the linear layer
    assert sum(it.bytes for it in pooled.buffers) < sum(it.bytes for it in program.buffers)
    (losses, before), (others, after) = (trained(it, captured.arrays()) for it in (program, pooled))
    assert others == pytest.approx(losses, rel=1e-12)
    assert before.keys() == after.keys()
    assert distance(after, before) < 1e-12


def test_the_input_of_a_program_has_no_gradient():
    pooled = with_pooling(program_of(model_of("two"))[0])
    first, second = (it for it in reversed(pooled.operators) if it.name.endswith("pool_gradient"))
    assert not {"dx", "db"} & first.arguments.keys()
    assert {"dx", "db"} <= second.arguments.keys()


def test_gradients_of_a_program_with_pooling_are_the_same():
    program, captured = program_of(model_of("two"))
    pooled = with_pooling(captured.program)
    assert names(pooled).count("conv2d_relu_pool") == 2
    assert pooled.phases == (len(pooled.operators), 0, 0)
    made = with_gradients(with_loss(pooled, captured.output), captured.trained).program
    assert names(made) == names(with_pooling(program))[: len(made.operators)]


def test_a_frozen_convolution_keeps_its_operators():
    model = model_of("two")
    model[3].weight.requires_grad_(False)
    program, _ = program_of(model)
    pooled = with_pooling(program)
    assert names(pooled).count("conv2d_relu_pool") == 1
    assert names(pooled).count("conv2d") == 1


def test_an_output_between_is_kept():
    program, _ = program_of(model_of("relu, pool"))
    relu = next(it for it in program.operators if it.name == "relu").outputs[0]
    table = program.as_table()
    table["buffers"][relu]["role"] = "output"
    shown = parse_program(json.dumps(table))
    assert with_pooling(shown) is shown


@pytest.mark.parametrize("images", [1, 2])
def test_maxima_nan_and_ties(images):
    """A window of one output each: the first of equal ones counts, a NaN counts most."""
    x = torch.zeros(images, 1, 4, 6)
    x[:, 0, 0, 1] = x[:, 0, 1, 0] = 2.0
    x[:, 0, 1, 3] = torch.nan
    x[:, 0, 2:, 2:4] = -1.0
    w = torch.ones(1, 1, 1, 1)
    how = {"stride": (1, 1), "padding": (0, 0), "groups": 1}
    shape = (images, 1, 2, 3)
    found = compute("conv2d_relu_pool", {"x": x, "w": w}, {"y": shape, "where": shape}, **how)
    assert found["where"][-1, 0].tolist() == [[1, 3, 4], [4, 4, 4]]
    assert torch.equal(found["y"].isnan()[-1, 0], torch.tensor([[0, 1, 0], [0, 0, 0]]).bool())
    assert found["y"][-1, 0].nan_to_num(7.0).tolist() == [[2, 7, 0], [0, 0, 0]]


@SPARSITIES
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_direct_updates_change_nothing_else(sparsity, momentum):
    settings = OptimizerSettings(momentum=momentum, weight_decay=0.01)
    program, captured = program_of(model_of("two", sparsity), settings)
    direct = with_direct_updates(program)
    sparse = int(sparsity is not None)
    assert names(direct).count("linear_sgd") == 2 - sparse
    assert names(direct).count("sparse_linear_sgd") == sparse
    assert not {"linear_weight_gradient", "sparse_linear_values_gradient"} & {*names(direct)}
    assert direct.phases[2] == program.phases[2] - 2
    (losses, before), (others, after) = (trained(it, captured.arrays()) for it in (program, direct))
    assert others == pytest.approx(losses, rel=1e-12)
    assert distance(after, before) < 1e-12


def test_gradients_that_are_wanted_stay():
    program, _ = program_of(model_of("two"))
    both = ["7.weight", "8.weight"]
    assert with_direct_updates(program, wanted=both) is program
    assert names(with_direct_updates(program, wanted=both[:1])).count("linear_sgd") == 1
    adam = OptimizerSettings(name="adam")
    program, _ = program_of(model_of("two"), adam)
    assert with_direct_updates(program) is program


def test_a_weight_of_two_layers_keeps_its_gradient():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(8, 8), nn.Linear(144, 4)

        def forward(self, x):
            return self.last(self.layer(self.layer(x)).flatten(1))

    direct = with_direct_updates(program_of(Twice())[0])
    assert names(direct).count("linear_sgd") == 1
    assert names(direct).count("linear_weight_gradient") == 2


@SPARSITIES
def test_compiled_steps_equal_the_reference(sparsity):
    program, captured = program_of(model_of("two", sparsity))
    changed = with_direct_updates(with_pooling(program))
    losses, exact = trained(program, captured.arrays(), steps=3)
    found = []
    for threads in (1, 2, 3):
        step = CompiledStep(changed, threads)
        for name, array in captured.arrays().items():
            step.load(name, array)
        for number, loss in enumerate(losses):
            given = inputs_of(number)
            assert step.step(given["input"], given["targets"], 0.1) == pytest.approx(loss, rel=1e-4)
        assert distance(step.arrays, exact) < 1e-4
        found.append({name: array.tobytes() for name, array in step.arrays.items()})
    assert found[0] == found[1] == found[2]


def test_passes_by_name():
    one, _ = program_of(model_of("two"), passes=PASSES)
    assert names(one) == names(with_direct_updates(with_pooling(program_of(model_of("two"))[0])))
    assert not one.takes_groups
    several, _ = program_of(model_of("two"), groups=True, passes=PASSES)
    assert several.takes_groups
    assert "linear_sgd" not in names(several)
    assert names(several).count("conv2d_relu_pool_gradient") == 2
