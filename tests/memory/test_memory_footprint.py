"""The modelled footprint, by hand and against what models and optimizers really hold."""

from dataclasses import replace

import pytest
import torch
from memory_cases import SMALL, TINY, generator, resnet, tiny

from mest_fed.errors import InputError
from mest_fed.memory import TrainingShape, footprint, trace_model
from mest_fed.memory.footprint import RUNTIME
from mest_fed.nn import Mutator, SparseLayer, sparsify
from mest_fed.sparsity import Bounds, MestEM, MestEMS, Method, RigL, build_method

SHAPE = TrainingShape(density=0.5, distribution="uniform", micro_batch=2, batch=8)


def tiny_trace():
    return trace_model(sparsify(tiny(), "block", 0.5), TINY)


def test_a_tiny_model_by_hand():
    parts = footprint(tiny_trace(), MestEM(), SHAPE).parts()
    trained = 4 * 9 * 4 + 300  # 9 of 18 strips of 4 weights, and 75 dense parameters
    assert parts == {
        "values": trained,
        "gradients": trained,
        "optimizer": trained,
        "index": 4 * 9,
        "activations": 2 * 358,
        "workspace": 2 * 4 * 72 + 8 * 36 + 2 * 2 * 144,
        "batch": 144 * (8 + 2),
        "wire": 2 * (trained + 4 * 9),
        "runtime": RUNTIME,
    }
    assert footprint(tiny_trace(), MestEM(), SHAPE).total == sum(parts.values())


def test_a_soft_bound_is_charged_at_its_peak():
    hard, soft = (footprint(tiny_trace(), method, SHAPE) for method in (MestEM(), MestEMS()))
    assert soft.values - hard.values == 4 * 4 * (round(1.5 * 9) - 9)
    assert soft.gradients - hard.gradients == soft.values - hard.values
    assert soft.optimizer - hard.optimizer == soft.values - hard.values
    assert soft.index == 4 * 14
    at_most_dense = footprint(tiny_trace(), MestEMS(), replace(SHAPE, density=0.9))
    assert at_most_dense.index == 4 * 18


def test_rigl_is_charged_its_dense_gradient():
    hard, rigl = (footprint(tiny_trace(), method, SHAPE) for method in (MestEM(), RigL()))
    assert rigl.gradients - hard.gradients == 4 * 72
    assert replace(rigl, gradients=hard.gradients) == hard


def test_momentum_is_charged_if_there_is_one():
    without = footprint(tiny_trace(), MestEM(), replace(SHAPE, momentum=False))
    assert without.optimizer == 0
    assert replace(without, optimizer=444) == footprint(tiny_trace(), MestEM(), SHAPE)


def test_activations_scale_with_the_micro_batch_alone():
    trace = tiny_trace()
    small, large = (footprint(trace, MestEM(), replace(SHAPE, micro_batch=size)) for size in (1, 8))
    assert large.activations - trace.saved_once == 8 * (small.activations - trace.saved_once)
    wider = footprint(trace, MestEM(), replace(SHAPE, batch=64))
    assert wider.activations == footprint(trace, MestEM(), SHAPE).activations
    assert wider.batch == 144 * (64 + 2)


def test_a_dense_model_pays_for_every_parameter():
    model = resnet()
    parts = footprint(trace_model(model, SMALL), Method(), SHAPE).parts()
    every = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert parts["values"] == parts["gradients"] == parts["optimizer"] == every
    assert parts["index"] == 0


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("scheme", ["unstructured", "block", "block:3", "pattern", "channel"])
@pytest.mark.parametrize("name", ["mest-em", "mest-ems"])
def test_values_and_momentum_are_as_large_as_they_really_get(name, scheme, distribution):
    density, method = 0.2, build_method(name, 0.2)
    model = resnet(scheme, density, distribution, norm="batch")
    shape = TrainingShape(density, distribution, 2, 2)
    parts = footprint(trace_model(model, SMALL), method, shape)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mutator = Mutator(model, method, optimizer)
    mutator.grow(Bounds(ceiling=method.peak), lambda name: generator())
    model(torch.zeros(2, *SMALL)).sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert parts.values == sum(t.untyped_storage().nbytes() for t in tensors)
    gradients = [p.grad for p in model.parameters()]
    assert parts.gradients == sum(t.untyped_storage().nbytes() for t in gradients)
    moments = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert parts.optimizer == sum(t.untyped_storage().nbytes() for t in moments)
    slots = {
        layer.mask_of or name: layer.slots.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }
    assert parts.index == 4 * sum(slots.values())


def test_sparser_is_smaller_in_every_part_that_holds_weights():
    trace = trace_model(resnet("block"), SMALL)
    steps = [
        footprint(trace, MestEM(), replace(SHAPE, density=density)).parts()
        for density in (0.05, 0.1, 0.2, 0.4, 1.0)
    ]
    for part in ("values", "gradients", "optimizer", "index", "wire"):
        sizes = [parts[part] for parts in steps]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("key", ["batch", "micro_batch"])
@pytest.mark.parametrize("size", [0, -1])
def test_empty_batches_are_refused(key, size):
    with pytest.raises(InputError, match=f"{key} = {size} is not allowed; allowed: a whole number"):
        replace(SHAPE, **{key: size})
