"""The bytes of one step: a small one by hand, and those of activations against autograd's own."""

import pytest
import torch
from memory_cases import NoOverhead
from saving_cases import MODELS, data, resnet
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from mest_fed.memory import MemoryOptions, TrainingShape, memory_saving
from mest_fed.memory import step_bytes as steps
from mest_fed.memory.live_bytes import LiveBytes
from mest_fed.memory.step_bytes import StepOptions, UntraceableError, step_bytes
from mest_fed.memory.trace import meta_model_of
from mest_fed.nn import SparseLayer
from mest_fed.nn.dense import Conv2d

IMAGE = (1, 6, 6)


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch):
    """Leave out what operators are reckoned to take for themselves: it is calibrated elsewhere."""
    monkeypatch.setattr(steps, "OperatorOverhead", NoOverhead)


def bytes_of(model, micro_batch, batch, memory=None, *, momentum=True, image=IMAGE, **options):
    shape = TrainingShape(1.0, "uniform", micro_batch, batch, momentum, memory or MemoryOptions())
    peak = step_bytes(meta_model_of(model), shape, StepOptions(image, **options))
    return {kind: size for kind, size in peak.items() if size}


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


WEIGHTS = 4 * (36 * 3 + 3)
BATCH = 8 * (4 * 36 + 8)  # images and int64 labels
#: The peak is where the weight's gradient is made: it, the bias's, and the loss's one number.
LAST = 4 * 36 * 3 + 4 * 3 + 4


def test_a_step_in_one_piece_by_hand():
    assert bytes_of(linear(), 8, 8) == {
        "values": WEIGHTS,
        "optimizer": WEIGHTS,
        "batch": BATCH,
        "activations": 4,  # the loss; what the softmax gave has been used
        "workspace": LAST + 4 * 3 * 8,  # and the gradient of 8 x 3 logits
    }


def test_a_second_micro_batch_finds_gradients():
    assert bytes_of(linear(), 2, 8) == {
        "values": WEIGHTS,
        "optimizer": WEIGHTS,
        "gradients": WEIGHTS,
        "batch": BATCH,
        "activations": 4,
        "workspace": LAST + 4 * 3 * 2,
    }


def test_consumed_gradients_are_not_there():
    without = bytes_of(linear(), 2, 8)
    consumed = bytes_of(linear(), 2, 8, MemoryOptions(release_gradients=True))
    assert without.pop("gradients") == WEIGHTS
    assert consumed == without
    kept = bytes_of(linear(), 2, 8, MemoryOptions(release_gradients=True), keep_gradients=True)
    assert kept == bytes_of(linear(), 2, 8)


def test_without_momentum_the_sum_of_what_is_consumed_stands_in_its_place():
    plain = bytes_of(linear(), 2, 8, momentum=False)
    assert "optimizer" not in plain
    consumed = bytes_of(linear(), 2, 8, MemoryOptions(release_gradients=True), momentum=False)
    assert sum(consumed.values()) == sum(plain.values())
    assert "gradients" not in consumed


def test_frozen_parts_have_neither_gradient_nor_momentum():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 3))
    parts = bytes_of(model, 2, 8, MemoryOptions(frozen=1))
    assert parts["values"] == WEIGHTS + 4 * (36 * 36 + 36)
    assert parts["optimizer"] == parts["gradients"] == WEIGHTS


def test_dense_gradients_are_charged():
    model = resnet("unstructured")
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    dense = [4 * layer.layout.num_weights for layer in layers]
    without = bytes_of(model, 2, 4, image=(1, 8, 8))
    with_them = bytes_of(model, 2, 4, image=(1, 8, 8), dense_gradients=True)
    # As gradients, or as workspace from their sum's making to the pass's end; with one at a time
    # in the making.
    more = sum(with_them.values()) - sum(without.values())
    assert sum(dense) <= more <= sum(dense) + max(dense)
    assert with_them["gradients"] > without["gradients"]
    assert without["index"] == 4 * sum(layer.slots.numel() for layer in layers)


def kept_for_real(model, images, labels):
    """Count what autograd keeps of a forward pass beside parameters, buffers and the batch."""
    own = {
        t.untyped_storage().data_ptr()
        for t in (*model.parameters(), *model.buffers(), images, labels)
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(images), labels, reduction="sum")
    return sum(storage.nbytes() for storage in kept.values()) + loss.nbytes


def kept_by_the_trace(model, count, memory):
    model = meta_model_of(model)
    images = torch.empty(count, 1, 8, 8, device="meta")
    labels = torch.empty(count, dtype=torch.int64, device="meta")
    with LiveBytes(NoOverhead()) as active, memory_saving(model, memory) as forward:
        active.mark((*model.parameters(), *model.buffers()), "values")
        active.mark((images, labels), "batch")
        loss = cross_entropy(forward(images), labels, reduction="sum")
        active.mark_rest("activations")
        active.begin()
    assert loss.shape == ()
    return active.peak["activations"]


@pytest.mark.parametrize("case", [case for case in MODELS if not case.startswith("own")])
@pytest.mark.parametrize("count", [1, 5])
def test_activations_are_those_that_autograd_keeps(case, count):
    model = MODELS[case]().train()
    images, labels = data(count, dtype=torch.float32)
    real = kept_for_real(model, images, labels)
    # Beside what they save, dense convolutions keep a list of their strips, one number each. Strips
    # have 4 weights, or 1 where 4 do not divide the output channels.
    for conv in model.modules():
        if isinstance(conv, Conv2d):
            real += conv.weight.numel() * 4 // (4 if conv.out_channels % 4 == 0 else 1)
    assert kept_by_the_trace(MODELS[case]().train(), count, MemoryOptions()) == real


@pytest.mark.soak
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_fewer_bits_are_fewer_bytes_and_recomputation_fewer_still(norm):
    model = resnet("block", norm, width=0.5, name="resnet20")

    def total(recompute, saved):
        return sum(
            bytes_of(model, 16, 16, MemoryOptions(recompute, saved), image=(1, 8, 8)).values()
        )

    for recompute in ("none", "norms", "segments"):
        exact, half, byte = (total(recompute, saved) for saved in ("fp32", "fp16", "int8"))
        assert byte < half < exact
    assert total("segments", "fp32") < total("norms", "fp32") < total("none", "fp32")


class Asks(nn.Module):
    """Cannot do without numbers."""

    def forward(self, x):
        return x * x.mean().item()


@pytest.mark.parametrize("recompute", ["none", "segments"])
def test_a_layer_that_needs_numbers_is_named(recompute):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(36, 3), Asks()))
    with pytest.raises(UntraceableError, match=r"1\.1 \(Asks\) cannot be traced without numbers: "):
        bytes_of(model, 2, 2, MemoryOptions(recompute) if recompute == "none" else MemoryOptions())
    with pytest.raises(UntraceableError, match="Asks"):
        bytes_of(
            nn.Sequential(nn.Flatten(), nn.Linear(36, 3), Asks()), 2, 2, MemoryOptions(recompute)
        )
