"""Operations of training with memory options, on models and on their skeletons."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mest_fed.devices import forward_flops, torch_step_work, training_flops, training_work
from mest_fed.memory import MemoryOptions, TrainingShape, memory_saving, trace_model
from mest_fed.memory.activations import batch_norm_block, batch_norm_stem, segments_of
from mest_fed.memory.footprint import peak_granules
from mest_fed.nn import Sparsity, build_model, build_shell, sparsify
from mest_fed.rng import torch_generator
from mest_fed.sparsity import Static

IMAGE = (3, 8, 8)
SEGMENTS = MemoryOptions("segments")


def build(scheme="block", norm="group"):
    sparsity = Sparsity(scheme, 0.2) if scheme else None
    options = {"generator": torch_generator(0, "test"), "width": 0.5, "norm": norm}
    return build_model("resnet8", IMAGE, 10, **options, sparsity=sparsity)


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel", None])
@pytest.mark.parametrize("memory", [MemoryOptions(), MemoryOptions("segments", frozen=1)])
def test_a_skeleton_counts_as_its_model(scheme, memory):
    trace = trace_model(
        build_shell("resnet8", IMAGE, 10, width=0.5, norm="group", scheme=scheme), IMAGE
    )
    shape = TrainingShape(0.2 if scheme else 1.0, "uniform", 8, 8)
    meta_model = trace.at(peak_granules(trace, Static(), shape))
    expected = training_work(build(scheme), IMAGE, memory)
    assert training_work(meta_model, IMAGE, memory) == expected
    assert expected.dense_flops > 0


def test_padding_is_left_out_of_a_skeleton_on_average():
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), *ends)
    trace = trace_model(sparsify(net, "block", 1.0), IMAGE)
    full = trace.at({"1": 2 * 36})  # strips of 4 channels: the second holds 2
    assert forward_flops(full, IMAGE).sparse_flops == 2 * 6 * 36 * 64


def test_recomputed_segments_go_forward_once_more():
    model = build()
    plain, again = training_work(model, IMAGE), training_work(model, IMAGE, SEGMENTS)
    assert again.sparse_flops == plain.sparse_flops * 4 / 3
    classifier = 2 * model.classifier.weight.numel()  # in no segment
    once = forward_flops(model, IMAGE).dense_flops - classifier
    assert again.dense_flops == plain.dense_flops + once


def test_norms_again_are_no_operations_that_are_counted():
    assert training_work(build(), IMAGE, MemoryOptions("norms")) == training_work(build(), IMAGE)


def test_frozen_segments_go_forward_alone():
    model = build()
    frozen = {module for s in segments_of(model)[:2] for module in s.modules()}
    assert training_work(model, IMAGE, MemoryOptions(frozen=2)) == training_flops(
        model, IMAGE, frozen=frozen
    )


def test_frozen_segments_cost_torch_a_third_of_their_calls_and_bytes():
    model = build()
    whole, frozen = (torch_step_work(model, IMAGE, MemoryOptions(frozen=it)) for it in (0, 2))
    assert 1 / 3 * whole.group.core_seconds < frozen.group.core_seconds < whole.group.core_seconds
    assert frozen.example.moved_bytes < whole.example.moved_bytes


def test_convolutions_of_batch_norm_blocks_go_forward_as_often_as_counted(monkeypatch):
    """Count every forward product of a real step, by layer, in images."""
    model, images = build(norm="batch").train(), torch.rand(8, *IMAGE)
    seen: Counter[nn.Module] = Counter()
    for module in (batch_norm_block, batch_norm_stem):
        original = module.convolve

        def convolve(conv, x, y, original=original):
            seen[conv] += len(x)
            return original(conv, x, y)

        monkeypatch.setattr(module, "convolve", convolve)
    convolutions = [
        m for m in model.modules() if hasattr(m, "geometry") or isinstance(m, nn.Conv2d)
    ]

    def called(layer, given, _):
        if layer in convolutions:
            seen[layer] += len(given[0])

    # For all modules: a segment with a hook on one of its own would not be computed by hand.
    hook = register_module_forward_hook(called)
    try:
        with memory_saving(model, SEGMENTS) as forward:
            forward(images).sum().backward()
    finally:
        hook.remove()
    times = {layer: seen[layer] // len(images) for layer in convolutions}
    plain, work = training_work(model, IMAGE), training_work(model, IMAGE, SEGMENTS)
    extra = sum(_flops(model, layer) * (times[layer] - 1) for layer in convolutions)
    assert extra == work.dense_flops + work.sparse_flops - plain.dense_flops - plain.sparse_flops
    assert sorted(set(times.values())) == [2, 3, 4]


def _flops(model, layer):
    """Count a layer's forward pass: what training it alone, its input left out, adds."""
    others = {module for module in model.modules() if module is not layer}
    trained, forward = training_flops(model, IMAGE, frozen=others), forward_flops(model, IMAGE)
    return trained.dense_flops + trained.sparse_flops - forward.dense_flops - forward.sparse_flops
