"""Sums taken by gradients of norms, and norms computed again: the same numbers, fewer bytes."""

import numpy as np
import pytest
from step_cases import BATCH, STEPS, distance, dtype_of, inputs_of, model_of

from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.build import Builder
from mest_fed.runtime.native import Runtime
from mest_fed.runtime.passes.fusion import with_fused_sums
from mest_fed.runtime.passes.planes import with_planes
from mest_fed.runtime.passes.recompute import with_recomputed_norms
from mest_fed.runtime.reference import Reference
from mest_fed.training.step_program import step_program
from mest_fed.training.tasks import Classification

MODELS = ("resnet8 block", "resnet8 batch", "resnet32", "mobilenetv2", "mlp")
PASSES = (with_fused_sums, with_recomputed_norms, with_planes)
#: Of the largest change of a weight, which float32 holds to some 1e-4 of it.
CHANGES = 2e-3


def step_of(name):
    shape, options, sparsity = STEPS[name]
    model = model_of(name, shape, options, sparsity)
    inputs = (BATCH, *shape), dtype_of(shape)
    program, captured = step_program(model, inputs, Classification(), OptimizerSettings(), ())
    return program, captured.arrays(), inputs_of(shape)


def both(program):
    return with_recomputed_norms(with_fused_sums(program))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_means_the_same(name):
    """Apart and together, and before layouts are chosen: all bits are equal."""
    program, values, given = step_of(name)
    others = [*(it(program) for it in PASSES), with_planes(both(program))]
    runs = []
    for one in (program, *others):
        runs.append(Reference(one, values, arena=plan_arena(one)))
        runs[-1].step(given)
    for number in program.of_role("parameter", "state", "output"):
        buffer = program.buffers[number].name
        for run in runs[1:]:
            np.testing.assert_array_equal(run.read(buffer), runs[0].read(buffer))


NATIVE = ("resnet8 block", "resnet8 batch", "resnet8 block:3", "resnet8 unstructured", "resnet18")


@pytest.mark.parametrize("name", [*NATIVE, "mobilenetv2", "dscnn"])
def test_the_native_runtime_agrees(name):
    """In C order and on planes; on planes with the same bits for any number of threads."""
    program, values, given = step_of(name)
    other = both(program)
    assert any(it.name == f"{norm_of(name)}_apply" for it in other.operators)
    found = []
    for one, threads in (
        (program, 1),
        (other, 1),
        (with_planes(other), 1),
        (with_planes(other), 3),
    ):
        arena = plan_arena(one)
        runtime = Runtime(one, arena.offsets, arena.peak, threads=threads)
        runtime.arena[...] = 255  # NaN
        for key, array in {**values, **given}.items():
            runtime.write(key, array)
        runtime.run()
        found.append(
            {
                one.buffers[it].name: runtime.read(one.buffers[it].name)
                for it in one.of_role("parameter")
            }
        )
    reference = Reference(program, values, "float64")
    reference.step(given)
    moved = {it: reference.read(it) - values[it] for it in found[0]}
    for held in found:
        assert distance({it: held[it] - values[it] for it in moved}, moved) < CHANGES
    for key, array in found[2].items():
        assert array.tobytes() == found[3][key].tobytes(), key


def norm_of(name):
    return "batch_norm" if STEPS[name][1]["norm"] == "batch" else "group_norm"


def test_what_a_residual_network_saves():
    program, _, _ = step_of("resnet32")
    fused, again = with_fused_sums(program), with_recomputed_norms(program)

    def count(one, name):
        return sum(it.name == name for it in one.operators)

    assert (count(program, "accumulate"), count(fused, "accumulate")) == (15, 0)
    assert count(fused, "sparse_conv2d_input_gradient_added") == 15
    # Of 31 norms beside the shortcuts', 15 have a residual and keep their output.
    norms = [it for it in program.operators if it.name == "group_norm"]
    plain = [it for it in norms if "residual" not in it.arguments]
    assert count(again, "group_norm_apply") == len(plain) - unread(program, plain)
    assert plan_arena(again).peak < 0.8 * plan_arena(program).peak
    assert plan_arena(fused).peak <= plan_arena(program).peak


def unread(program, norms):
    """Norms whose output nothing reads in the backward phase."""
    forward = program.phases[0]
    read = {it for operator in program.operators[forward:] for it in operator.reads}
    return sum(it.arguments["y"] not in read for it in norms)


def gradient_of_a_sum(between=None, output=False):
    """a, b -> b += a -> the gradient of a batch norm of b."""
    builder = Builder()
    given = {it: builder.buffer(it, (3, 2), role="input") for it in ("x", "p", "q")}
    kept = {it: builder.buffer(it, (2,), role="input") for it in ("mean", "scale", "gamma")}
    (a,) = builder.operator("relu", {"x": given["p"]}, {}, "a")
    (b,) = builder.operator("relu", {"x": given["q"]}, {}, "b")
    builder.operator("accumulate", {"a": a}, {"into": b})
    if between == "part":
        builder.operator("accumulate", {"a": given["x"]}, {"into": a})
    if between == "sum":
        builder.operator("relu", {"x": b}, {}, "other")
    inputs = {"x": given["x"], "dy": b, **kept}
    builder.operator("batch_norm_gradient", inputs, {}, "d", relu=False)
    if output:
        builder.role(b, "output")
    return builder.end_phase(1).program()


def test_sums_that_others_need_stay():
    def names(program):
        return [it.name for it in with_fused_sums(program).operators]

    assert names(gradient_of_a_sum()) == ["relu", "relu", "batch_norm_gradient"]
    assert names(gradient_of_a_sum(between="part")).count("accumulate") == 2
    assert "accumulate" in names(gradient_of_a_sum(between="sum"))
    assert "accumulate" in names(gradient_of_a_sum(output=True))


def test_outputs_that_are_no_temporaries_are_kept():
    program, _, _ = step_of("resnet8 block")
    builder = Builder(program)
    for operator in program.operators:
        if operator.name == "group_norm":
            builder.role(operator.arguments["y"], "output")
    again = with_recomputed_norms(builder.program())
    assert not any(it.name == "group_norm_apply" for it in again.operators)
