"""The trace of one forward pass: what it counts, and that it leaves no mark."""

import gc
import weakref

import pytest
import torch
from memory_cases import SMALL, TINY, generator, resnet, tiny
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.memory import trace_model
from mest_fed.nn import sparsify


def saved_bytes(model, images):
    """Return what autograd really keeps of a forward pass, parameters and buffers left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
        nn.functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))
    return sum(storage.nbytes() for storage in kept.values())


def test_a_tiny_model_by_hand():
    trace = trace_model(sparsify(tiny(), "block", 0.5), TINY)
    # Stem 2*1*9 weights and 2 biases, 4 biases of the sparse layer, classifier 16*3 + 3.
    assert trace.dense_parameters == 4 * (18 + 2 + 4 + 48 + 3)
    assert trace.buffers == 0
    assert trace.image == 4 * 36
    # The image; 2x4x4 after the ReLU, read by both it and the convolution; 16 features;
    # 3 log-probabilities; an int64 label. The loss's one number is there once.
    assert trace.saved_per_image == 144 + 128 + 64 + 12 + 8
    assert trace.saved_once == 4
    assert trace.largest_activation == 144
    assert trace.spec.sparse_weights == 72


def test_buffers_are_those_of_the_norms():
    trace = trace_model(resnet("block", norm="batch"), SMALL)
    channels = 8 + 2 * 8 + 3 * 16 + 3 * 32  # stem; blocks of two norms, two with a shortcut's
    assert trace.buffers == 4 * 2 * channels
    assert trace_model(resnet("block"), SMALL).buffers == 0


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("scheme", [None, "unstructured", "block", "pattern", "channel"])
def test_activations_are_those_of_any_batch_times_its_images(scheme, norm):
    model = resnet(scheme, norm=norm)
    trace = trace_model(model, SMALL)
    for images in (3, 16):
        real = saved_bytes(model.train(), torch.zeros(images, *SMALL))
        assert images * trace.saved_per_image + trace.saved_once == pytest.approx(real, rel=0.01)


def test_sparse_layers_save_no_more_than_dense_ones():
    dense, sparse = (trace_model(resnet(scheme), SMALL) for scheme in (None, "unstructured"))
    assert sparse.saved_per_image <= dense.saved_per_image
    assert dense.spec.groups == {}
    total = sum(parameter.numel() for parameter in resnet().parameters())
    assert dense.dense_parameters == 4 * total
    assert sparse.dense_parameters + 4 * sparse.spec.sparse_weights == 4 * total


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = resnet("block", norm="batch").train(training)
    with torch.no_grad():
        model.norm1.running_mean.normal_(generator=generator())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    trace_model(model, SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_no_activation_outlives_the_trace(norm):
    model, outputs = resnet("block", norm=norm), []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    trace_model(model, SMALL)
    gc.collect()
    assert len(outputs) > 20
    assert not any(output() is not None for output in outputs)


def test_density_does_not_change_a_trace():
    assert trace_model(resnet("block", 0.1), SMALL) == trace_model(resnet("block", 0.4), SMALL)
