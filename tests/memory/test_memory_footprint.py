"""The modelled footprint against what models and optimizers really hold, and how it moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_cases import SMALL, TINY, resnet, tiny
from torch.nn.functional import cross_entropy

from mest_fed.errors import InputError
from mest_fed.memory import MemoryOptions, TrainingSetup, TrainingShape, footprint, trace_model
from mest_fed.memory.footprint import RUNTIME, peak_granules
from mest_fed.nn import Mutator, SparseLayer, sparsify
from mest_fed.nn.client_optimizer import MOMENTUM
from mest_fed.sparsity import Bounds, MestEM, MestEMS, Method, RigL, build_method
from mest_fed.training import OptimizerSettings

SHAPE = TrainingShape(density=0.5, distribution="uniform", micro_batch=2, batch=8)
TRACE = trace_model(sparsify(tiny(), "block", 0.5), TINY)
HARD = TrainingSetup(MestEM())


def predict(method=None, shape=SHAPE, *, trace=TRACE, **setting):
    return footprint(trace, TrainingSetup(method or MestEM(), **setting), shape)


def test_what_a_tiny_model_holds_by_hand():
    parts = predict().parts()
    trained = 4 * 9 * 4 + 300  # 9 of 18 strips of 4 weights, and 75 dense parameters
    assert parts["values"] == parts["optimizer"] == parts["gradients"] == trained
    assert parts["index"] == 4 * 9
    assert parts["batch"] == 2 * 144 + 8 * 8  # images that are computed, and int64 labels
    assert parts["wire"] == 2 * (trained + 4 * 9)  # message, and the state that it carries
    assert parts["runtime"] == RUNTIME
    assert predict().total == sum(parts.values())


def test_a_soft_bound_is_charged_at_its_peak():
    hard, soft = predict(MestEM()), predict(MestEMS())
    assert soft.values - hard.values == 4 * 4 * (round(1.5 * 9) - 9)
    assert soft.optimizer - hard.optimizer == soft.values - hard.values
    assert soft.index == 4 * 14
    at_most_dense = predict(MestEMS(), replace(SHAPE, density=0.9))
    assert at_most_dense.index == 4 * 18


def test_rigl_is_charged_its_dense_gradient():
    assert predict(RigL()).total - predict(MestEM()).total >= 4 * 72
    dense = trace_model(tiny(), TINY)
    assert predict(RigL(), trace=dense).total == predict(MestEM(), trace=dense).total


def test_momentum_is_charged_if_there_is_one():
    without = predict(shape=replace(SHAPE, momentum=False))
    assert without.optimizer == 0
    assert predict().total - without.total == predict().optimizer == 444


def test_what_error_feedback_keeps_and_packs_is_charged():
    plain, fed = predict(), predict(feedback=True)
    state = 4 * 9 * 4 + 300 + 4 * 9
    assert fed.wire - plain.wire == fed.total - plain.total == 3 * state
    assert predict(messages=False, feedback=True) == predict(messages=False)


def test_messages_are_charged_where_there_are_any():
    alone = predict(messages=False)
    assert alone == replace(predict(), wire=0, batch=8 * (144 + 8))  # and whole batches are given


def test_consumed_gradients_stand_where_the_device_mutates():
    consuming = replace(SHAPE, memory=MemoryOptions(release_gradients=True))
    assert predict(shape=consuming).gradients == 0
    assert predict(shape=consuming, mutates=True) == predict()
    assert predict(mutates=True) == predict()


def test_a_footprint_is_worked_out_once():
    assert predict() is predict()
    assert predict() is not predict(MestEMS())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_activations_scale_with_the_micro_batch_alone(norm):
    trace = trace_model(resnet("block", norm=norm), SMALL)
    wide = replace(SHAPE, density=0.25, batch=32)

    def kept(shape):
        return predict(shape=shape, trace=trace)

    few, more = (kept(replace(wide, micro_batch=size)) for size in (4, 8))
    assert few.activations < more.activations <= 2 * few.activations
    wider = kept(replace(wide, micro_batch=4, batch=64))
    assert replace(wider, batch=0) == replace(few, batch=0)
    assert wider.batch - few.batch == 32 * 8  # labels: images are made as many as are computed


def test_inputs_stand_as_they_are_given_or_read_or_as_few_as_are_computed():
    shape = replace(SHAPE, batch=8, micro_batch=2)
    labels, image = 8 * 8, TRACE.image
    assert predict(shape=shape).batch == labels + 2 * image
    assert predict(shape=shape, held=1).batch == labels + 2 * image + 8 * image // 4
    assert predict(shape=shape, held=4).batch == labels + 2 * image + 8 * image
    assert predict(shape=shape, messages=False).batch == labels + 8 * image


def test_a_dense_model_pays_for_every_parameter():
    model = resnet()
    parts = predict(Method(), trace=trace_model(model, SMALL)).parts()
    every = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert parts["values"] == parts["gradients"] == parts["optimizer"] == every
    assert parts["index"] == 0


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("scheme", ["unstructured", "block", "block:3", "pattern", "channel"])
@pytest.mark.parametrize("name", ["mest-em", "mest-ems"])
def test_values_and_momentum_are_as_large_as_they_really_get(name, scheme, distribution):
    density, method = 0.2, build_method(name, 0.2)
    model = resnet(scheme, density, distribution, norm="batch").train()
    trace = trace_model(model, SMALL)
    shape = TrainingShape(density, distribution, 2, 4)
    parts = predict(method, shape, trace=trace)

    optimizer = OptimizerSettings().build(model)
    mutator = Mutator(model, method, optimizer)
    mutator.grow(Bounds(ceiling=method.peak), lambda name: np.random.default_rng(0))
    cross_entropy(model(torch.zeros(2, *SMALL)), torch.zeros(2, dtype=torch.int64)).backward()
    optimizer.step()
    tensors = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    held = {name: tensor.untyped_storage().nbytes() for name, tensor in tensors.items()}
    index = [size for name, size in held.items() if name.endswith("slots")]
    assert parts.index == sum(index)
    assert parts.values == sum(held.values()) - sum(index)
    assert parts.gradients == sum(p.grad.untyped_storage().nbytes() for p in model.parameters())
    moments = [state[MOMENTUM] for state in optimizer.state.values()]
    assert parts.optimizer == sum(t.untyped_storage().nbytes() for t in moments)
    active = peak_granules(trace, method, shape)
    assert active == {
        n: len(m.slots) for n, m in model.named_modules() if isinstance(m, SparseLayer)
    }


def test_sparser_is_smaller_in_every_part_that_holds_weights():
    trace = trace_model(resnet("block"), SMALL)
    steps = [
        predict(shape=replace(SHAPE, density=density), trace=trace).parts()
        for density in (0.05, 0.1, 0.2, 0.4, 1.0)
    ]
    for part in ("values", "gradients", "optimizer", "index", "wire"):
        sizes = [parts[part] for parts in steps]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch = 0 is not allowed; allowed: a whole number of at least 1"),
        ({"micro_batch": 0}, r"micro_batch = 0 is not allowed; allowed: 1 to 8 \(the batch\)"),
        ({"micro_batch": 9}, r"micro_batch = 9 is not allowed; allowed: 1 to 8 \(the batch\)"),
        ({"density": 0.0}, r"density = 0\.0 is not allowed; allowed: a number in \(0, 1\]"),
        ({"density": 1.1}, r"density = 1\.1 is not allowed"),
    ],
)
def test_shapes_that_cannot_be(wrong, message):
    with pytest.raises(InputError, match=message):
        replace(SHAPE, **wrong)
