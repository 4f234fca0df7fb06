"""A model's trace: its sizes, and a meta model that shares nothing with it."""

import gc
import weakref

import pytest
import torch
from memory_cases import SMALL, TINY, generator, resnet, tiny
from torch import nn

from mest_fed.memory import trace_model
from mest_fed.memory.trace import meta_model_of
from mest_fed.nn import SparseLayer, sparsify


def test_a_tiny_model_by_hand():
    trace = trace_model(sparsify(tiny(), "block", 0.5), TINY)
    # Stem 2*1*9 weights and 2 biases, 4 biases of the sparse layer, classifier 16*3 + 3.
    assert trace.dense_parameters == 4 * (18 + 2 + 4 + 48 + 3)
    assert trace.buffers == 0
    assert trace.image == 4 * 36
    assert trace.spec.sparse_weights == 72


def test_a_dense_model_has_no_scratch_and_no_groups():
    trace = trace_model(tiny(), TINY)
    assert (trace.scratch, trace.spec.groups) == (0, {})
    assert trace.dense_parameters == 4 * (18 + 2 + 72 + 4 + 48 + 3)


def test_buffers_are_those_of_the_norms():
    trace = trace_model(resnet("block", norm="batch"), SMALL)
    channels = 8 + 2 * 8 + 3 * 16 + 3 * 32  # stem; blocks of two norms, two with a shortcut's
    assert trace.buffers == 4 * 2 * channels
    assert trace_model(resnet("block"), SMALL).buffers == 0


def tensors(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_model_is_left_as_it_was(training, norm):
    model = resnet("block", norm=norm).train(training)
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(generator=generator())
    model.conv1.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    standing = {name: sorted(vars(module)) for name, module in model.named_modules()}
    held = [tensor.untyped_storage()._cdata for tensor in tensors(model)]
    rng = torch.get_rng_state()
    trace = trace_model(model, SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert standing == {name: sorted(vars(module)) for name, module in model.named_modules()}
    assert held == [tensor.untyped_storage()._cdata for tensor in tensors(model)]
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.conv1.weight.requires_grad
    assert not trace.meta_model.conv1.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_skeleton_takes_no_memory_and_has_the_model_s_shapes():
    model = resnet("pattern", norm="batch")
    meta_model = meta_model_of(model)
    assert all(tensor.is_meta for tensor in tensors(meta_model))
    shapes = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in meta_model.state_dict().items()} == shapes
    mine, theirs = ({id(module) for module in it.modules()} for it in (model, meta_model))
    assert not mine & theirs
    assert not any(tensor.is_meta for tensor in tensors(model))


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    meta_model = meta_model_of(model)
    assert meta_model[1].weight is meta_model[0].weight


def test_at_other_densities():
    trace = trace_model(resnet("block"), SMALL)
    active = dict.fromkeys(trace.spec.layouts, 7)
    model = trace.at(active)
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            assert layer.values.shape == (7, trace.spec.layouts[name].width)
            assert layer.slots.shape == (7,)
    # The trace's own meta_model is as it was, for whoever asks next.
    assert len(trace.meta_model.stage1[0].conv1.slots) != 7
    assert len(active) == 6


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_no_activation_outlives_the_trace(norm):
    model, outputs = resnet("block", norm=norm), []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    trace = trace_model(model, SMALL)
    assert trace.scratch >= 0  # which runs the model, as this does
    assert trace.traceable_loss == trace.loss
    gc.collect()
    assert len(outputs) > 20
    assert not any(output() is not None for output in outputs)


def test_density_changes_nothing_but_the_skeleton():
    few, many = (trace_model(resnet("block", density), SMALL) for density in (0.1, 0.4))
    for name in ("spec", "input_shape", "dense_parameters", "buffers"):
        assert getattr(few, name) == getattr(many, name)
