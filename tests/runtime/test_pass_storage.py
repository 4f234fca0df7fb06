"""Planes of bfloat16 in whole steps: what becomes so, and how far the numbers move."""

import numpy as np
import pytest
from step_cases import BATCH, STEPS, distance, dtype_of, inputs_of, model_of

from mest_fed.errors import InputError
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.bfloat16 import rounded, widened
from mest_fed.runtime.build import Builder
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.passes.storage import obstacles, with_bf16_storage
from mest_fed.runtime.reading import parse_program
from mest_fed.runtime.reference import Reference
from mest_fed.training.step_program import StepPrograms, check_stored, step_program
from mest_fed.training.tasks import Classification

NATIVE = ("resnet8", "resnet8 block", "resnet8 batch", "resnet8 unstructured", "resnet18")
#: Of the largest change of a weight: float32's rounding, and numbers that lie between two of
#: bfloat16, which may be rounded to either side since sums differ in their last bits.
BETWEEN = 2e-3
#: The same against a step that rounds nothing: 2**-9 in all that a convolution or a norm gives.
ROUNDED = 0.1


def step_of(name):
    """Return a step on planes with all passes, values and inputs.

    Values are some that bfloat16 holds: products of pairs round weights, the reference does not.
    """
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    inputs = (BATCH, *shape), dtype_of(shape)
    how = inputs, Classification(), OptimizerSettings(), ("fusion", "recompute", "planes")
    laid, captured = step_program(model, *how)
    values = {
        name: widened(rounded(it)) if it.dtype == np.float32 else it
        for name, it in captured.arrays().items()
    }
    return laid, values, inputs_of(shape)


def run(program, values, given, threads=1):
    """Run a step natively; return its parameters and its loss."""
    arena = plan_arena(program)
    runtime = Runtime(program, arena.offsets, arena.peak, threads=threads)
    runtime.arena[...] = 255  # NaN
    for key, array in {**values, **given}.items():
        runtime.write(key, array)
    runtime.run()
    return parameters(program, runtime)


def parameters(program, held):
    return {
        program.buffers[it].name: held.read(program.buffers[it].name)
        for it in program.of_role("parameter", "sum")
    }


@pytest.mark.parametrize("name", NATIVE)
def test_a_step_rounds_where_it_says(name):
    """Against the reference that rounds at the same places, and against the step that does not."""
    program, values, given = step_of(name)
    stored = with_bf16_storage(program)
    assert parse_program(stored.to_json()) == stored
    assert any(it.dtype == "bfloat16" for it in stored.buffers)
    found = run(stored, values, given)
    for key, array in run(stored, values, given, threads=3).items():
        assert array.tobytes() == found[key].tobytes(), key
    changes = []
    for one in (stored, program):
        reference = Reference(one, values, "float64")
        reference.step(given)
        changes.append(moves(parameters(one, reference), values))
    assert distance(moves(found, values), changes[0]) < BETWEEN
    assert BETWEEN < distance(moves(found, values), changes[1]) < ROUNDED
    arena = Reference(stored, values, arena=plan_arena(stored))
    arena.step(given)
    assert distance(moves(parameters(stored, arena), values), changes[0]) < BETWEEN


def moves(held, values):
    return {it: array - values[it] for it, array in held.items() if it in values}


def test_what_of_a_residual_network_is_narrow():
    """All planes but the gradients that come from above; each norm and convolution reads them."""
    program, _, _ = step_of("resnet32")
    stored = with_bf16_storage(program)
    assert [it.name for it in stored.operators] == [it.name for it in program.operators]
    types = {it.name: it.dtype for it in stored.buffers}
    assert {it.dtype for it in stored.buffers if not it.margin} == {
        it.dtype for it in program.buffers if not it.margin
    }
    narrow = wide = 0
    for operator in stored.operators:
        for name, number in operator.arguments.items():
            if not stored.buffers[number].margin:
                continue
            is_narrow = types[stored.buffers[number].name] == "bfloat16"
            narrow, wide = narrow + is_narrow, wide + (not is_narrow)
            assert is_narrow == (name in operator.kind.bf16), (operator.name, name)
    assert narrow > wide > 0
    assert plan_arena(stored).peak < 0.7 * plan_arena(program).peak


@pytest.mark.parametrize("passes", [(), ("groups", "planes")])
def test_the_storage_of_programs(passes):
    """Without planes nothing changes."""
    shape, options, sparsity = STEPS["resnet8 block"]
    model = model_of("resnet8 block", shape, options, sparsity)
    example = shape, dtype_of(shape)
    how = model, example, Classification(), OptimizerSettings()
    made = [StepPrograms(*how, passes=passes, storage=it)(BATCH) for it in ("fp32", "bf16")]
    assert with_bf16_storage(made[0]) == made[1]
    assert (made[0] == made[1]) == ("planes" not in passes)
    with pytest.raises(InputError, match="storage = 'fp16' is not allowed; allowed: fp32, bf16"):
        StepPrograms(model, example, Classification(), OptimizerSettings(), storage="fp16")


def chain(*names):
    """x -> a 1x1 convolution -> functions one behind the other, all planes."""
    builder = Builder()
    x = builder.buffer("x", (2, 4, 6, 6), role="input")
    w = builder.buffer("w", (4, 4, 1, 1), role="parameter")
    (y,) = builder.operator("copy", {"x": x}, {}, "laid")
    builder.margin(y, 1)
    how = {"stride": (1, 1), "padding": (0, 0), "groups": 1}
    (y,) = builder.operator("conv2d", {"x": y, "w": w}, {}, "conv", **how)
    for name in names:
        builder.margin(y, 1)
        (y,) = builder.operator(name, {"x": y}, {}, name)
    builder.role(y, "output")
    return builder.end_phase(0).program()


@pytest.mark.parametrize(
    ("names", "narrow"),
    [
        (["copy"], ["laid", "conv"]),
        (["copy", "copy"], ["laid", "conv", "copy"]),
        (["relu", "copy"], []),
        (["copy", "relu", "copy"], ["laid", "conv"]),
    ],
)
def test_operators_that_take_float32_alone(names, narrow):
    stored = with_bf16_storage(chain(*names))
    assert [it.name for it in stored.buffers if it.dtype == "bfloat16"] == narrow


def test_bfloat16_is_of_planes_alone():
    builder = Builder()
    x = builder.buffer("x", (2, 4, 6, 6), role="input")
    (y,) = builder.operator("copy", {"x": x}, {}, "y")
    builder.dtype(y, "bfloat16")
    with pytest.raises(InputError, match="margin = 0 is not allowed; allowed: 1 and more for bfl"):
        builder.program()
    builder.margin(y, 1)
    builder.operator("relu", {"x": y}, {}, "z")
    with pytest.raises(InputError, match=r"relu.x = 'bfloat16' is not allowed"):
        builder.end_phase(0).program()


def test_parts_of_one_operator_are_of_one_type():
    builder = Builder(chain("copy"))
    builder.dtype(2, "bfloat16")
    with pytest.raises(InputError, match=r"dtypes of conv2d's x, y = .* allowed: one for all"):
        builder.program()


def test_the_first_half_of_a_float_is_what_is_kept():
    program = with_bf16_storage(chain("copy"))
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 6))
    values = {"w": np.eye(4).reshape(4, 4, 1, 1)}
    reference = Reference(program, values)
    reference.step({"x": x})
    kept = reference.read("copy")
    assert np.all(kept.astype(np.float32).view(np.uint32) & 0xFFFF == 0)
    assert np.abs(kept - x).max() <= np.abs(x).max() * 2**-8


#: Built-in models of which nothing becomes narrow -> the forward operators in the way.
WIDE = {
    "resnet8 block:3": ["group_norm", "sparse_conv2d"],
    "cnn2": ["conv2d"],
    "mobilenetv2": ["add", "conv2d", "group_norm", "relu6"],
    "dscnn": ["batch_norm", "conv2d"],
    "har1d": ["conv2d", "global_average_pool", "group_norm", "sparse_conv2d"],
    "mlp": [],
    "transformer": [],
    "lstm": [],
}


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet32", *WIDE])
def test_which_models_have_something_narrow(name):
    shape, options, sparsity = STEPS[name]
    model, example = model_of(name, shape, options, sparsity), (shape, dtype_of(shape))
    how = model, example, Classification(), OptimizerSettings()
    wide, stored = (StepPrograms(*how, storage=it)(BATCH) for it in ("fp32", "bf16"))
    check_stored(wide, "fp32")
    if name not in WIDE:
        assert obstacles(wide) == []
        check_stored(stored, "bf16")
        return
    assert stored == wide
    named = ", ".join(WIDE[name]) or "it has no planes of convolutions"
    with pytest.raises(InputError, match=f"keeps all as fp32 \\({named}\\)"):
        check_stored(stored, "bf16")
