"""Batches that are taken group by group: what they give is what one group of all would."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import IMAGE, STEPS, dtype_of, model_of
from torch import nn

from mest_fed.errors import InputError
from mest_fed.nn.capture import capture
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference
from mest_fed.runtime.step import CompiledForward, CompiledStep
from mest_fed.training.step_program import PASSES, StepPrograms
from mest_fed.training.tasks import Classification

SETTINGS = OptimizerSettings(momentum=0.9, weight_decay=0.01)
#: Of the loss, and of the largest number: rounding of float32.
LOSS, NUMBERS = 1e-4, 1e-3
RATE = 0.1


class Cached(StepPrograms):
    """Each size is captured once."""

    def __init__(self, *what, **how):
        super().__init__(*what, **how)
        self.captured, self.program = cache(super().captured), cache(super().__call__)

    def __call__(self, examples):
        return self.program(examples)


@cache
def programs_of(name):
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    return Cached(model, (shape, dtype_of(shape)), Classification(), SETTINGS)


def tiny(**how):
    """Return the step of a linear layer of 3 features and 2 classes."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return Cached(model, ((3,), torch.float32), Classification(), SETTINGS, **how)


def test_without_the_pass_a_batch_is_one_group():
    one = tiny(groups=False, passes=[it for it in PASSES if it != "updates"])
    single, grouped = compiled(one, 4, 2), compiled(tiny(), 4, 2)
    assert not single.program.takes_groups
    assert "accumulate" not in {it.name for it in single.program.operators}
    for examples in (9, 4, 1):
        x, targets = batch_of((3, 1), examples)
        x, targets = x[..., 0], targets % 2
        loss = single.step(x, targets, RATE)
        assert loss == pytest.approx(grouped.step(x, targets, RATE), rel=LOSS)
        for kind in ("arrays", "gradients"):
            close(getattr(single, kind), getattr(grouped, kind))


def batch_of(shape, examples, seed=0):
    rng = np.random.default_rng(seed)
    tokens = len(shape) == 1
    x = rng.integers(0, 10, (examples, *shape)) if tokens else rng.normal(size=(examples, *shape))
    return x, rng.integers(0, 10, examples)


def compiled(programs, group, threads=1, **options):
    step = CompiledStep(programs(group), threads, resize=programs, **options)
    for name, array in programs.captured(group).arrays().items():
        step.load(name, array)
    return step


def close(mine, exact):
    size = max(float(np.abs(it).max()) for it in exact.values())
    for name, array in exact.items():
        np.testing.assert_allclose(mine[name], array, atol=NUMBERS * size, rtol=0, err_msg=name)


@pytest.mark.parametrize("name", ["resnet8 block", "mlp", "transformer", "resnet8 batch"])
def test_any_batch_in_any_groups_is_a_step_of_all(name):
    """With a rest, more chunks than lanes, fewer than lanes, a group that is too large."""
    programs, shape = programs_of(name), STEPS[name][0]
    for examples, groups in ((7, (2, 16)), (19, (2,))):
        x, targets = batch_of(shape, examples)
        whole = programs(examples)
        reference = Reference(whole, programs.captured(examples).arrays(), "float64")
        share = 1 / examples
        reference.step({"input": x, "targets": targets, "rates": [RATE], "share": [share]})
        logits = reference.read(whole.buffers[whole.of_role("output")[0]].name)
        for group in groups:
            steps = [compiled(programs, group, threads) for threads in (1, 2, 4)]
            losses = [step.step(x, targets, RATE) for step in steps]
            assert losses[0] == pytest.approx(float(reference.read("loss")), rel=LOSS)
            exact = {it: reference.read(it) for it in steps[0].arrays}
            close(steps[0].arrays, exact)
            named = {it: reference.read(f"{it}:gradient") for it in steps[0].gradients}
            close(steps[0].gradients, named)
            close({"logits": steps[0].outputs}, {"logits": logits})
            for step, loss in zip(steps[1:], losses[1:], strict=True):
                assert loss == losses[0]
                assert step.outputs.tobytes() == steps[0].outputs.tobytes()
                for kind in ("arrays", "gradients"):
                    for it, array in getattr(step, kind).items():
                        assert array.tobytes() == getattr(steps[0], kind)[it].tobytes(), it


def test_batches_of_changing_sizes_are_steps_of_one_model():
    programs = programs_of("mlp")
    step, single = compiled(programs, 2, 2), compiled(programs, 12)
    for number, examples in enumerate((5, 1, 12, 12, 2, 3)):
        x, targets = batch_of(STEPS["mlp"][0], examples, number)
        loss = step.step(x, targets, RATE)
        assert loss == pytest.approx(single.step(x, targets, RATE), rel=LOSS)
        assert step.outputs.shape == (examples, 10)
    close(step.arrays, {it: array.copy() for it, array in single.arrays.items()})


def test_a_lane_takes_an_arena():
    programs = programs_of("mlp")
    peak = plan_arena(programs(2)).peak
    for batch, lanes in ((None, 3), (64, 3), (5, 2), (1, 1)):
        assert compiled(programs, 2, 3, batch=batch).arena_bytes == lanes * peak
    x, targets = batch_of(STEPS["mlp"][0], 12)
    losses = {compiled(programs, 2, 3, batch=it).step(x, targets, RATE) for it in (None, 5, 1)}
    assert len(losses) == 1


def test_the_reference_takes_groups():
    programs = programs_of("mlp")
    x, targets = batch_of(STEPS["mlp"][0], 6)
    given_ = {"input": x, "targets": targets, "rates": [RATE], "share": [1 / 6]}
    runs = []
    for group in (1, 2, 6):
        reference = Reference(programs(group), programs.captured(group).arrays(), "float64")
        reference.step(given_, 6 // group)
        runs.append(reference)
    for name in programs.captured(1).trained:
        for run in runs[:2]:
            np.testing.assert_allclose(run.read(name), runs[2].read(name), atol=1e-12)


def dropping():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 3))
    return Cached(model, ((4, 10), torch.float32), Classification(), SETTINGS)


def test_dropout_does_not_depend_on_the_groups():
    """What a ones' row keeps is what its logits are made of."""
    programs = dropping()
    made = []
    for group in (1, 2, 3, 4, 7):
        step = compiled(programs, group, 2, rng=np.random.default_rng(5))
        step.step(np.ones((7, 4, 10)), np.zeros(7, int), RATE)
        made.append(step.outputs.copy())
    for logits in made[1:]:
        np.testing.assert_allclose(logits, made[0], atol=1e-5)
    assert len({row.tobytes() for row in made[0]}) == 7
    reference = Reference(programs(1), programs.captured(1).arrays(), "float64")
    seed = np.random.default_rng(5).integers(2**63, size=1)
    name = next(it.name for it in programs(1).buffers if it.name.endswith(":seed"))
    inputs = {"input": np.ones((7, 4, 10)), "targets": [0] * 7, "rates": [RATE], "share": [1 / 7]}
    reference.step({**inputs, name: seed}, 7)
    label = next(it.name for it in programs(1).buffers if it.role == "output")
    np.testing.assert_allclose(made[0][-1:], reference.read(label), atol=1e-5)


def test_weights_are_dropped_once_a_batch():
    builder = Builder()
    x = builder.buffer("x", (4, 3), role="input")
    seed = builder.buffer("seed", (1,), "int64", "setting")
    weight = builder.buffer("w", (2, 3), role="parameter")
    for first, takes in ((x, True), (weight, False)):
        one = Builder()
        one.buffers = list(builder.buffers)
        dropped, _ = one.operator("dropout", {"x": first, "seed": seed}, {}, probability=0.5)
        given_ = {"x": x, "w": weight, ("w" if first == weight else "x"): dropped}
        one.operator("linear", given_, {}, "y")
        assert one.end_phase(0).program().takes_groups == takes


def test_rows_that_do_not_count_by_hand():
    """Zero weights: each row that counts gives log 2, and its gradient is (p - onehot) x / 2."""
    step = compiled(tiny(), 1, 2)
    step.load("0.weight", np.zeros((2, 3)))
    step.load("0.bias", np.zeros(2))
    x = np.array([[1.0, 0, 0], [9, 9, 9], [0, 2, 0]])
    assert step.step(x, [0, -100, 1], 0.0) == pytest.approx(np.log(2))
    wanted = np.array([[-0.25, 0.5, 0], [0.25, -0.5, 0]])
    np.testing.assert_allclose(step.gradients["0.weight"], wanted, atol=1e-6)
    assert step.step(x, [-1, -1, -1], 0.0) == 0
    assert not step.gradients["0.weight"].any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    examples=st.integers(1, 40),
    group=st.integers(1, 9),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_sums_over_groups(examples, group, threads, seed):
    programs, rng = tiny(), np.random.default_rng(seed)
    step = compiled(programs, group, threads)
    x, targets = rng.normal(size=(examples, 3)), rng.integers(-1, 2, examples)
    weight, bias = step.arrays["0.weight"].astype(float), step.arrays["0.bias"].astype(float)
    loss = step.step(x, targets, RATE)
    logits = x @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counted = targets >= 0
    share = 1 / max(1, counted.sum())
    error = (p - np.eye(2)[targets]) * counted[:, None] * share
    assert loss == pytest.approx(-np.log(p[counted, targets[counted]]).sum() * share, abs=1e-5)
    np.testing.assert_allclose(step.gradients["0.weight"], error.T @ x, atol=1e-5)
    np.testing.assert_allclose(step.gradients["0.bias"], error.sum(0), atol=1e-5)
    np.testing.assert_allclose(step.outputs, logits, atol=1e-5)


def test_what_is_wrong_in_a_group_is_one_line_and_changes_nothing():
    programs = tiny()
    step = compiled(programs, 2, 3)
    before = {it: array.copy() for it, array in step.arrays.items()}
    x, targets = np.zeros((11, 3), np.float32), np.zeros(11, int)
    for place in (0, 5, 10):
        wrong = targets.copy()
        wrong[place] = 2
        with pytest.raises(InputError, match=rf"targets\[{place}\] = 2; allowed: less than 2"):
            step.step(x, wrong, RATE)
    for inputs, labels in (
        (x[:, :2], targets),
        (x, targets[:10]),
        (x[:0], targets[:0]),
        (x[0], targets[:1]),
        (np.float32(1), targets),
    ):
        with pytest.raises(InputError, match=r"has shape .*; allowed: \(N"):
            step.step(inputs, labels, RATE)
    for it, array in step.arrays.items():
        np.testing.assert_array_equal(array, before[it])
    x.flags.writeable = False
    assert step.step(x, targets, RATE) == pytest.approx(np.log(2), rel=0.5)


def test_a_program_of_a_file_has_its_own_size_alone():
    grouped = CompiledStep(parse_program(tiny()(4).to_json()))
    grouped.step(np.zeros((8, 3)), np.zeros(8, int), RATE)
    with pytest.raises(InputError, match=r"^2 examples .*; allowed: batches of a multiple of 4$"):
        grouped.step(np.zeros((10, 3)), np.zeros(10, int), RATE)
    single = CompiledStep(programs_of("resnet8 batch")(4))
    assert not single.program.takes_groups
    with pytest.raises(InputError, match=r"^8 examples .*; allowed: batches of 4$"):
        single.step(*batch_of(IMAGE, 8), RATE)


def test_another_model_is_no_other_size():
    step = CompiledStep(tiny()(2), resize=programs_of("mlp"))
    with pytest.raises(InputError, match="other parameters or states"):
        step.step(np.zeros((3, 3)), np.zeros(3, int), RATE)


@pytest.mark.parametrize("name", ["resnet8 block", "transformer"])
def test_predictions_of_what_trains(name):
    programs, shape = programs_of(name), STEPS[name][0]
    step = compiled(programs, 2)

    def forward(examples):
        return with_planes(programs.captured(examples).program)

    predictors = [CompiledForward(forward(2), it, forward, step.arrays) for it in (1, 3)]
    for seed in range(2):
        x, targets = batch_of(shape, 7, seed)
        logits = [it.predict(x) for it in predictors]
        step.step(x, targets, RATE)
        for it in logits:
            assert it.tobytes() == step.outputs.tobytes()
    alone = CompiledForward(forward(1))
    for it, array in step.arrays.items():
        if it in alone.arrays:
            alone.load(it, array)
    np.testing.assert_array_equal(alone.predict(x), predictors[0].predict(x))


def test_what_is_no_prediction_is_one_line():
    with pytest.raises(InputError, match=r"takes \['share'"):
        CompiledForward(tiny()(2))
    dropped = capture(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)), (2, 3))
    with pytest.raises(InputError, match=r"takes \['0:seed'\]"):
        CompiledForward(dropped.program)
    normed = capture(nn.Sequential(nn.Conv1d(3, 2, 1), nn.BatchNorm1d(2)), (2, 3, 4))
    with pytest.raises(InputError, match="keeps statistics"):
        CompiledForward(normed.program)
    predictor = CompiledForward(capture(nn.Linear(3, 2), (2, 3)).program)
    with pytest.raises(InputError, match="no outputs"):
        _ = predictor.outputs
