"""Training by programs that store planes as bfloat16."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import batches, generator, model

from mest_fed.errors import InputError
from mest_fed.kernels import torch_threads
from mest_fed.memory import MemoryOptions, TrainingShape
from mest_fed.nn import build_model
from mest_fed.runtime import native_table
from mest_fed.runtime.arena import plan_arena
from mest_fed.sparsity import MestEM
from mest_fed.training import (
    CLASSIFICATION,
    CompiledTrainer,
    LocalMutation,
    LocalTrainer,
    OptimizerSettings,
    RoundMutation,
)
from mest_fed.training.programs import Programs, check_step
from mest_fed.training.step_compiler import StepCompiler

pytestmark = pytest.mark.skipif(not native_table.available(), reason="no compiled runtime")

SGD = OptimizerSettings(0.02, 0.9, 1e-3)
BF16 = MemoryOptions(saved="bf16")
#: Of the largest change of a weight in one step: 2**-9 in all that a convolution or a norm gives.
#: Of these small planes it makes 2 to 11%.
ROUNDED = 0.15


def train(net, data, *, saved="bf16", threads=1, mutates=False, **how):
    """Train a copy of a model by programs; return it and the programs."""
    net = copy.deepcopy(net)
    optimizer, programs = SGD.build(net), Programs(net)
    what = RoundMutation(MestEM(), progress=0.1, seed=0, round=3)
    mutation = LocalMutation(net, optimizer, what, len(data)) if mutates else None
    how = {"micro_batch": 8, "memory": MemoryOptions(saved=saved), **how}
    with torch_threads(threads):
        CompiledTrainer(
            net,
            optimizer,
            programs=programs,
            settings=SGD,
            rng=np.random.default_rng(0),
            **how,
        ).fit(data, mutation)
    return net, programs


def bits(net):
    return {name: it.numpy().tobytes() for name, it in net.state_dict().items()}


def types_of(program):
    return {it.dtype for it in program.buffers}


def step_of(programs):
    (step,) = programs._kept.values()
    return step.step


@pytest.mark.parametrize("mutates", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("micro_batch", [3, 8])
def test_threads_have_the_same_bits(norm, micro_batch, mutates):
    net, data = model("block", norm=norm), batches(3)
    how = {"micro_batch": micro_batch, "mutates": mutates}
    made = [train(net, data, threads=it, **how) for it in (1, 2, 3, 4)]
    assert all("bfloat16" in types_of(step_of(programs).program) for _, programs in made)
    (one, *others) = [bits(trained) for trained, _ in made]
    assert all(it == one for it in others)
    assert one != bits(train(net, data, saved="fp32", **how)[0])


@pytest.mark.parametrize("scheme", [None, "block", "unstructured", "pattern", "channel"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_step_is_that_of_float32_but_for_rounding(scheme, norm):
    net, data = model(scheme, norm=norm), batches(1, 8)
    narrow, wide = (train(net, data, saved=it)[0].state_dict() for it in ("bf16", "fp32"))
    was = net.state_dict()
    floats = [it for it in was if was[it].is_floating_point()]
    moved = max(float((wide[it] - was[it]).abs().max()) for it in floats)
    apart = max(float((wide[it] - narrow[it]).abs().max()) for it in floats)
    assert 0 < apart < ROUNDED * moved


def test_evaluation_stays_float32():
    net, data = model("block"), batches(2)
    trained, programs = train(net, data)
    trained.eval()
    mine = programs.forward(data[0].inputs)
    step, forward = programs._kept.values()
    assert "bfloat16" in types_of(step.step.program)
    assert "bfloat16" not in types_of(forward._forward.program)
    with torch.no_grad():
        torch.testing.assert_close(mine, trained(data[0].inputs), rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_narrow_torch_packs_as_asked():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    example = ((4, 1, 8, 8), torch.float32), CLASSIFICATION, SGD
    check_step(net, *example)
    with pytest.raises(InputError, match=r"memory.saved = 'bf16'.* as fp32 \(conv2d"):
        check_step(net, *example, "bf16")
    data = batches(2)
    mine, programs = train(net, data)
    assert list(programs._kept.values()) == [None]
    theirs = copy.deepcopy(net)
    LocalTrainer(theirs, SGD.build(theirs), micro_batch=8, memory=BF16).fit(data)
    assert bits(mine) == bits(theirs)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 8), (16, 4), (13, 6)])
def test_training_runs_what_the_planner_reads(norm, batch, micro_batch):
    net = model("unstructured", norm=norm)
    compiler = StepCompiler(((1, 8, 8), torch.float32), CLASSIFICATION, SGD)
    shape = TrainingShape(0.25, "uniform", micro_batch, batch, memory=BF16)
    planned = compiler(copy.deepcopy(net), shape).program
    _, programs = train(net, batches(1, batch), micro_batch=micro_batch, batch_size=batch)
    ran = step_of(programs).program
    assert "bfloat16" in types_of(ran)
    assert planned.sha256 == ran.sha256
    wide = compiler(copy.deepcopy(net), replace(shape, memory=MemoryOptions())).program
    assert "bfloat16" not in types_of(wide)
    assert plan_arena(planned).peak < plan_arena(wide).peak


def test_groups_are_no_larger_for_it():
    """Half the bytes are asked for, and not twice the examples in as many."""
    net = build_model("resnet8", (3, 32, 32), 10, generator=generator(), norm="group")
    compiler = StepCompiler(((3, 32, 32), torch.float32), CLASSIFICATION, SGD)
    narrow, wide = (
        compiler(net, TrainingShape(1.0, "uniform", 64, 64, memory=MemoryOptions(saved=it)))
        for it in ("bf16", "fp32")
    )
    assert 1 < narrow.program.examples <= wide.program.examples < 64
    assert plan_arena(narrow.program).peak < 0.7 * plan_arena(wide.program).peak
