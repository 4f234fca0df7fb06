"""RigL's dense gradients under recomputation, in micro_chunks and in micro-batches."""

import pytest
import torch
from saving_cases import EXACT_PAIRS, backward, data, resnet

from mest_fed.memory import MemoryOptions
from mest_fed.memory.activations import micro_chunks as cutting
from mest_fed.nn import Mutator, mask_groups
from mest_fed.sparsity import RigL


def dense_gradients(memory, *, norm="batch", scheme="unstructured", dtype=torch.float64, parts=1):
    net = resnet(scheme, norm).to(dtype)
    Mutator(net, RigL()).keep_dense_gradients(True)
    images, labels = data(8, dtype=dtype)
    for part in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        backward(net, memory, part)
    return {
        f"{group.name} {number}": layer.dense_gradient
        for group in mask_groups(net)
        for number, layer in enumerate(group.layers)
    }


def check(ours, expected, rel):
    assert len(expected) == 6
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= rel * gradient.norm(), name
        assert gradient.any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("pair", EXACT_PAIRS)
@pytest.mark.parametrize("size", [2**18, 3 * 4 * 4 * 64])  # in one piece, and in three
def test_they_are_those_without(monkeypatch, pair, norm, dtype, size):
    expected = dense_gradients(MemoryOptions(), norm=norm, dtype=dtype)
    monkeypatch.setattr(cutting, "CHUNK_BYTES", size)
    ours = dense_gradients(MemoryOptions(*pair), norm=norm, dtype=dtype)
    check(ours, expected, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("scheme", ["block", "pattern", "channel"])
def test_whatever_the_scheme(scheme):
    check(
        dense_gradients(MemoryOptions("segments"), scheme=scheme),
        dense_gradients(MemoryOptions(), scheme=scheme),
        1e-10,
    )


def test_micro_batches_add_up():
    expected = dense_gradients(MemoryOptions(), norm="group", parts=2)
    check(dense_gradients(MemoryOptions("segments"), norm="group", parts=2), expected, 1e-10)


def test_frozen_layers_have_none():
    found = dense_gradients(MemoryOptions("segments", frozen=2))
    assert [name for name, gradient in found.items() if gradient is None] == [
        "stage1.0.conv1 0",
        "stage1.0.conv2 0",
    ]
