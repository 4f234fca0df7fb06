"""Whole compiled steps of the built-in models against the reference, and what a trainer sees."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from program_cases import linear_step
from step_cases import BATCH, STEPS, TOKENS, distance, dtype_of, inputs_of, model_of
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.build import Builder
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.step import CompiledStep
from mest_fed.training.step_program import step_program
from mest_fed.training.tasks import Classification, NextToken

#: Of the loss and of the largest weight: rounding of float32 through tens of layers, two steps.
LOSS, WEIGHTS = 1e-4, 1e-3
SETTINGS = OptimizerSettings(momentum=0.9, weight_decay=0.01)


def step_of(name):
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    program, captured = step_program(
        model, ((BATCH, *shape), dtype_of(shape)), Classification(), SETTINGS
    )
    return shape, program, captured.arrays()


def loaded(program, values, **options):
    step = CompiledStep(program, **options)
    for name, array in values.items():
        step.load(name, array)
    return step


def train(step, given):
    return step.step(given["input"], given["targets"], given["rates"][0])


@pytest.mark.parametrize("name", STEPS)
def test_two_steps_equal_the_reference(name):
    shape, program, values = step_of(name)
    reference, rounded = (Reference(program, values, it) for it in ("float64", "float32"))
    steps = [loaded(program, values, threads=threads) for threads in (1, 2, 3, 4)]
    for number in range(2):
        given = inputs_of(shape, seed=number)
        reference.step(given)
        rounded.step(given)
        losses = [train(step, given) for step in steps]
        exact = {it: reference.read(it) for it in steps[0].arrays}
        # A narrow model may be so steep that 32 bits end elsewhere, in any order of sums.
        own = distance({it: rounded.read(it) for it in exact}, exact)
        assert distance(steps[0].arrays, exact) < max(WEIGHTS, 1.5 * own)
        loss, off = float(reference.read("loss")), float(rounded.read("loss"))
        assert losses[0] == pytest.approx(loss, rel=LOSS, abs=1.5 * abs(off - loss))
        for step, loss in zip(steps[1:], losses[1:], strict=True):
            assert loss == losses[0]
            for it, array in step.arrays.items():
                assert array.tobytes() == steps[0].arrays[it].tobytes(), it


def test_adam_at_each_position():
    """What Adam moves by is the sign of a gradient that may be rounding: the loss says it."""
    model = model_of("transformer", TOKENS, {"width": 0.25}, None, TOKENS)
    settings = OptimizerSettings(name="adamw", weight_decay=0.1)
    inputs = (BATCH, *TOKENS), torch.int64
    program, captured = step_program(model, inputs, NextToken(), settings)
    reference, step = Reference(program, captured.arrays(), "float64"), CompiledStep(program)
    for name, array in captured.arrays().items():
        step.load(name, array)
    for number in range(2):
        given = inputs_of(TOKENS, TOKENS, seed=number) | {"rates": [1e-3]}
        reference.step(given)
        assert train(step, given) == pytest.approx(float(reference.read("loss")), rel=LOSS)


def test_wrong_data_is_one_line():
    shape, program, values = step_of("resnet8 block")
    step, given = loaded(program, values, threads=2), inputs_of(shape)
    slots = next(it for it in values if values[it].dtype == np.int32)
    before = {name: array.copy() for name, array in step.arrays.items()}
    wrong = [
        {"targets": [0, 1, 2, 10]},
        {"targets": [0.0, 1.0, 2.0, 3.0]},
        {"targets": [0, 1, 2]},
        {"input": given["input"][:, :2]},
        {"input": given["input"] + 1j},
    ]
    for changes in wrong:
        with pytest.raises(InputError) as refused:
            train(step, given | changes)
        assert "\n" not in str(refused.value)
    for name, array in step.arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    for changed in (before[slots][::-1], before[slots] - before[slots][0] - 1):
        step.load(slots, changed)
        with pytest.raises(InputError, match=r"slots\[\d+\] = .*increase"):
            train(step, given)
    with pytest.raises(InputError, match="int32 holds"):
        step.load(slots, before[slots].astype(np.int64) + 2**32)
    step.load(slots, before[slots])
    assert np.isfinite(train(step, given))


def test_wrong_tokens_are_one_line():
    shape, program, values = step_of("transformer")
    step, given = loaded(program, values), inputs_of(shape)
    table = next(it for it in program.operators if it.name == "embedding").arguments["table"]
    for token in (-1, program.buffers[table].shape[0]):
        tokens = given["input"].copy()
        tokens[0, 0] = token
        with pytest.raises(InputError, match=r"indices\[0\]"):
            train(step, given | {"input": tokens})


def test_wrong_targets_in_another_thread_are_one_line():
    model = nn.Linear(3, 8)
    inputs = (20_000, 3), torch.float32
    program, captured = step_program(model, inputs, Classification(), SETTINGS)
    step = loaded(program, captured.arrays(), threads=4)
    targets = np.zeros(20_000, np.int64)
    for place in (0, 19_999):
        wrong = targets.copy()
        wrong[place] = 8
        with pytest.raises(InputError, match=rf"targets\[{place}\] = 8"):
            step.step(np.zeros((20_000, 3)), wrong, 0.1)
    assert step.step(np.zeros((20_000, 3)), targets, 0.1) > 0


def test_dropout_draws_from_the_generator_alone():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 3))
    program, captured = step_program(
        model, ((2, 40), torch.float32), Classification(), OptimizerSettings()
    )
    with pytest.raises(InputError, match="generator"):
        CompiledStep(program)
    losses = [
        loaded(program, captured.arrays(), rng=np.random.default_rng(seed)).step(
            np.ones((2, 40)), [0, 1], 0.1
        )
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_step_is_a_whole_one_and_has_its_names():
    step = CompiledStep(linear_step())
    assert set(step.arrays) == {"w", "w:momentum_buffer"}
    assert step.arena_bytes > 0
    with pytest.raises(InputError, match=r"'v' is no parameter or state; allowed: w, w:"):
        step.load("v", np.zeros(3))
    builder = Builder()
    builder.operator("relu", {"x": builder.buffer("x", (2,), role="input")}, {})
    with pytest.raises(InputError, match=r"targets: \[\]; allowed: one"):
        CompiledStep(builder.end_phase(0).program())


TRAINER = """
import sys
from pathlib import Path
import numpy as np
from mest_fed.runtime.reading import read_program
from mest_fed.runtime.step import CompiledStep

folder = Path(sys.argv[1])
step = CompiledStep(read_program(folder / "step.json"))
with np.load(folder / "weights.npz") as weights:
    for name in weights:
        step.load(name, weights[name])
rng = np.random.default_rng(0)
images, labels = rng.normal(size=(4, 3, 8, 8)), rng.integers(0, 10, 4)
losses = [step.step(images, labels, 0.1) for _ in range(8)]
assert losses[-1] < 0.5 * losses[0], losses
assert "torch" not in sys.modules
"""


def test_training_from_files_needs_no_torch(tmp_path):
    _, program, values = step_of("cnn2")
    (tmp_path / "step.json").write_text(program.to_json())
    np.savez(tmp_path / "weights.npz", **values)
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
