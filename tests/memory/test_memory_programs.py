"""The bytes of compiled steps: by hand, by properties, and against the runtime's."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from memory_cases import answer_of, generator, resnet, tiny
from torch import nn

from mest_fed.config import from_table
from mest_fed.data import Batch
from mest_fed.errors import InputError
from mest_fed.memory import (
    MemoryOptions,
    TrainingSetup,
    TrainingShape,
    footprint,
    trace_model,
)
from mest_fed.memory.program_bytes import program_bytes
from mest_fed.runtime import native, native_table
from mest_fed.runtime.arena import plan_arena
from mest_fed.runtime.batches import GROUPS_AT_ONCE
from mest_fed.sparsity import MestEMS, RigL, Static, build_method
from mest_fed.system.peak_meter import PeakMeter, can_measure
from mest_fed.task import Task
from mest_fed.training import CLASSIFICATION, CompiledTrainer, OptimizerSettings
from mest_fed.training.model_step import ModelStep
from mest_fed.training.programs import Programs
from mest_fed.training.step_compiler import StepCompiler
from mest_fed.training.step_program import StepPrograms

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")

EXAMPLE = (1, 6, 6)
SGD = OptimizerSettings(0.1)


def compiler(example=EXAMPLE, settings=SGD, objective=CLASSIFICATION):
    return StepCompiler((example, torch.float32), objective, settings)


def setup(method=None, **how):
    how = {"messages": False, "compiler": compiler(), **how}
    return TrainingSetup(method or Static(), **how)


def shape(batch=8, micro_batch=None, density=1.0, **how):
    return TrainingShape(density, "uniform", micro_batch or batch, batch, **how)


def test_a_tiny_model_by_hand():
    net = tiny()
    parameters = 4 * sum(it.numel() for it in net.parameters())
    found = footprint(trace_model(net, EXAMPLE), setup(), shape())
    step = compiler()(net, shape())
    assert (found.values, found.gradients, found.optimizer) == (
        parameters,
        parameters + 4,  # the loss is a sum too
        parameters,
    )
    assert (found.index, found.wire) == (0, 0)
    assert found.activations == plan_arena(step.program).peak
    assert found.batch == 8 * (4 * 36 + 8 + 4 * 3)  # images, labels, logits
    assert step.held == {it.name for it in step.program.buffers if it.role == "parameter"}


@pytest.mark.parametrize(
    ("optimizer", "momentum", "copies"),
    [
        ("sgd", True, 1),
        ("sgd", False, 0),
        ("adam", True, 2),
        ("adam", False, 2),  # programs have a first moment that decays at once
    ],
)
def test_the_state_of_an_optimizer(optimizer, momentum, copies):
    net, settings = tiny(), OptimizerSettings(0.1, name=optimizer)
    parameters = list(net.parameters())
    given = shape(optimizer=optimizer, momentum=momentum)
    found = footprint(trace_model(net, EXAMPLE), setup(compiler=compiler(settings=settings)), given)
    values = 4 * sum(it.numel() for it in parameters)
    steps = 8 * len(parameters) if optimizer == "adam" else 0
    assert found.optimizer == copies * values + steps


def test_the_proximal_term_keeps_the_values():
    net = tiny()
    settings = OptimizerSettings(0.1, proximal=0.1)
    plain = footprint(trace_model(net, EXAMPLE), setup(), shape())
    near = footprint(
        trace_model(net, EXAMPLE), setup(compiler=compiler(settings=settings)), shape()
    )
    assert near.optimizer == 2 * plain.optimizer


def test_frozen_segments_have_no_gradient():
    net = resnet("block")
    trace = trace_model(net, (1, 8, 8))
    with_programs = setup(compiler=compiler((1, 8, 8)))
    full = footprint(trace, with_programs, shape(density=0.25))
    frozen = footprint(trace, with_programs, shape(density=0.25, memory=MemoryOptions(frozen=2)))
    for part in ("gradients", "optimizer", "activations"):
        assert getattr(frozen, part) < getattr(full, part), part
    assert frozen.values == full.values


def test_smaller_groups_take_fewer_bytes_and_norms_are_recomputed_in_any_case():
    trace = trace_model(resnet("block"), (1, 8, 8))
    with_programs = setup(compiler=compiler((1, 8, 8)))

    def activations(**how):
        return footprint(trace, with_programs, shape(32, density=0.25, **how)).activations

    sizes = [activations(micro_batch=size) for size in (32, 16, 8, 4, 2, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] * 8 < sizes[0]
    assert activations(memory=MemoryOptions("norms")) == activations()


def test_images_of_a_few_groups_are_made_at_a_time():
    trace = trace_model(resnet("block"), (1, 8, 8))
    given = shape(32, 1, density=0.25)
    steps = {held: setup(compiler=compiler((1, 8, 8)), messages=True, held=held) for held in (0, 1)}
    whole = footprint(trace, setup(compiler=compiler((1, 8, 8))), given).batch
    assert whole - footprint(trace, steps[0], given).batch == (32 - GROUPS_AT_ONCE) * trace.image
    assert whole - footprint(trace, steps[1], given).batch == (24 - GROUPS_AT_ONCE) * trace.image


@pytest.mark.parametrize("memory", [MemoryOptions("segments"), MemoryOptions(saved="fp16")])
def test_what_is_not_compiled_is_predicted_as_before(memory):
    trace = trace_model(resnet("block"), (1, 8, 8))
    given = shape(density=0.25, memory=memory)
    compiled = footprint(trace, setup(compiler=compiler((1, 8, 8))), given)
    assert compiled == footprint(trace, TrainingSetup(Static(), messages=False), given)


def test_a_model_without_a_program_is_predicted_as_before():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3), torch.nn.LogSigmoid())
    trace = trace_model(net, EXAMPLE)
    assert compiler()(net, shape()) is None
    by_torch = footprint(trace, TrainingSetup(Static(), messages=False), shape())
    assert footprint(trace, setup(), shape()) == by_torch


def test_a_growing_mask_is_charged_at_its_peak():
    trace = trace_model(resnet("block"), (1, 8, 8))
    with_programs = {"compiler": compiler((1, 8, 8))}
    method = build_method("mest-ems", 0.25)
    assert isinstance(method, MestEMS)
    still = footprint(trace, setup(**with_programs), shape(density=0.25))
    grown = footprint(trace, setup(method, **with_programs), shape(density=0.25))
    for part in ("values", "gradients", "optimizer", "index"):
        assert getattr(grown, part) > getattr(still, part), part


def test_where_dense_gradients_are_read_the_step_of_torch_counts_too():
    trace, given = trace_model(resnet("block"), (1, 8, 8)), shape(density=0.25)
    mutating = {"mutates": True, "messages": False}
    by_torch = footprint(trace, TrainingSetup(RigL(), **mutating), given)
    compiled = {"compiler": compiler((1, 8, 8)), "messages": False}
    found = footprint(trace, TrainingSetup(RigL(), mutates=True, **compiled), given)
    alone = footprint(trace, TrainingSetup(RigL(), **compiled), given)
    assert found.total == max(by_torch.total, alone.total)
    other = footprint(trace, TrainingSetup(Static(), mutates=True, **compiled), given)
    assert other.total < by_torch.total  # its step is a program


def test_a_step_whose_gradients_are_read_keeps_them():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9000), nn.ReLU(), nn.Linear(9000, 10))
    trace, given = trace_model(net, (1, 8, 8)), shape(8, 8, density=1.0)
    made = {"compiler": compiler((1, 8, 8)), "messages": False}
    direct = footprint(trace, TrainingSetup(Static(), **made), given)
    read = footprint(trace, TrainingSetup(Static(), mutates=True, **made), given)
    assert read.gradients - direct.gradients >= 4 * 64 * 9000


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (16, 4), (13, 6)])
def test_a_prediction_has_the_bytes_of_the_runtime(norm, threads, batch, micro_batch):
    net = resnet("unstructured", norm=norm).train()
    programs = StepPrograms(net, ((1, 8, 8), torch.float32), CLASSIFICATION, SGD)
    made = ModelStep(programs, micro_batch, threads)
    given = shape(batch, micro_batch, density=0.25)
    planned = compiler((1, 8, 8))(net, given)
    assert planned.program.sha256 == made.step.program.sha256
    found = program_bytes(planned, given, threads)
    assert found["activations"] == made.step.arena_bytes
    space = native.workspace_of(
        made.step.program,
        plan_arena(made.step.program),
        threads=threads,
        lanes=min(threads, max(1, micro_batch // made.step.program.examples))
        if norm == "group"
        else 0,
    )
    assert space.plans + space.sums == made.step.runtime.workspace_bytes
    assert found["workspace"] >= space.plans + threads * space.scratch


def test_nothing_of_a_programs_size_is_allocated_to_plan_it():
    with torch.device("meta"):
        net = torch.nn.Linear(2**15, 2**14)
    with PeakMeter() as meter:
        step = StepCompiler(((2**15,), torch.float32), CLASSIFICATION, SGD)(net, shape(4, 2))
        found = program_bytes(step, shape(4, 2), 1)
    assert found["gradients"] > 2**31
    assert meter.added < 2**28


def test_a_ragged_epoch_has_more_sizes():
    trace, given = trace_model(tiny(), EXAMPLE), shape(8)
    whole = footprint(trace, setup(), given)
    ragged = footprint(trace, setup(rest=None), given)
    assert ragged.workspace > whole.workspace
    assert ragged.activations == whole.activations


def test_a_last_batch_that_is_known_has_its_own_sizes_alone():
    trace, given = trace_model(tiny(), EXAMPLE), shape(8)
    whole, four, seven, any_number, one_more = (
        footprint(trace, setup(rest=rest), given).workspace for rest in (0, 4, 7, None, 9)
    )
    # By powers of two: 4 alone, and 4 + 2 + 1, which are all that there are; 9 is 8 and 1.
    assert whole < four < seven == any_number
    assert whole < one_more < seven


def test_halving_takes_smaller_groups_and_lets_the_old_memory_go():
    net = tiny()
    programs = Programs(net)
    programs.keep_within(0)
    trainer = CompiledTrainer(
        net,
        SGD.build(net),
        micro_batch=12,
        programs=programs,
        settings=SGD,
        rng=np.random.default_rng(0),
    )
    images = torch.randn(12, *EXAMPLE, generator=generator())
    batch = Batch(images, torch.arange(12) % 3, np.arange(12))
    held = []
    trainer.guard = lambda it: (
        held.append((it.programs.bytes, len(it.programs._kept))) or it.halve()
    )
    trainer.fit([batch] * 5)
    assert trainer.micro_batch == 1
    sizes = [size for size, _ in held]
    assert all(later < earlier for earlier, later in pairwise(sizes[:4]))
    assert {count for _, count in held} == {1}
    assert not trainer.halve()


def test_what_the_runtime_refuses_is_predicted_as_before(monkeypatch):
    trace, given = trace_model(tiny(), EXAMPLE), shape()
    by_torch = footprint(trace, TrainingSetup(Static(), messages=False), given)

    def refuse(*_, **__):
        raise InputError("working memory")

    monkeypatch.setattr("mest_fed.memory.program_bytes.workspace_of", refuse)
    assert footprint(trace, setup(), given) == by_torch


CODE = """
import json, sys
sys.path.append("benchmarks")
from memory_prediction import cases, prediction_rows
from mest_fed.catalogue import Engine
cases = cases(Engine.COMPILED)
chosen = [it for it in cases if it.model == "resnet8" and it.scheme == "block"]
print(json.dumps([[row["name"], row["within"]] for row in prediction_rows("programs", chosen)]))
"""


@pytest.mark.soak
@pytest.mark.skipif(not can_measure(), reason="nothing can be measured here")
def test_predictions_are_what_is_measured():
    assert [name for name, within in answer_of(CODE) if not within] == []


def test_a_plan_needs_few_programs():
    task = Task(from_table({"data": {"name": "digits"}, "model": {"name": "resnet8"}}, "test"))
    planner = task.planner()
    total = planner.plan(2**40).footprint.total
    assert planner.plan(total // 2).shape != planner.limits.shape
    assert task.step_compiler.made <= 8
