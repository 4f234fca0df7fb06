"""Frozen segments: no gradient, nothing kept; what stands behind them trains as ever."""

import pytest
import torch
from saving_cases import LOSSLESS, MODELS, PAIRS, backward, data, flat, resnet, train
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.memory.activations import segments_of


def names_in(net, segments):
    inside = {id(p) for segment in segments for p in segment.parameters()}
    return {name for name, p in net.named_parameters() if id(p) in inside}


@pytest.mark.parametrize("case", ["batch-block", "group-block", "batch-channel", "own-None"])
@pytest.mark.parametrize(("recompute", "saved"), PAIRS)
def test_frozen_segments_get_no_gradient_and_the_rest_trains(case, recompute, saved):
    expected = train(case, "none", "fp32")
    net = MODELS[case]().double()
    frozen = names_in(net, segments_of(net)[:2])
    assert frozen
    outcome = backward(net, MemoryOptions(recompute, saved, frozen=2), data())
    assert {name for name, g in outcome.gradients.items() if g is None} == frozen
    rest = [
        flat({n: g for n, g in it.gradients.items() if n not in frozen})
        for it in (outcome, expected)
    ]
    rel = 1e-10 if saved in LOSSLESS else 0.13  # see test_saving_inexact
    assert (rest[0] - rest[1]).norm() <= rel * rest[1].norm()
    assert outcome.loss == pytest.approx(expected.loss, rel=1e-12)


def saved_shapes(net, memory, images):
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), memory_saving(net, memory):
        net(images)
    return shapes


def test_frozen_segments_keep_nothing():
    net = resnet("block", "group").double().train()
    images, _ = data(4)
    first = {(4, 1, 8, 8), (4, 4, 8, 8)}  # the images, and activations of the first stage
    assert first <= set(saved_shapes(net, MemoryOptions(), images))
    kept = saved_shapes(net, MemoryOptions(frozen=2), images)
    assert kept.count((4, 4, 8, 8)) == 2  # read by stage2's first convolution and shortcut
    assert (4, 1, 8, 8) not in kept


def test_frozen_segments_move_their_statistics_as_in_plain_training():
    expected = train("batch-block", "none", "fp32")
    outcome = backward(resnet("block").double(), MemoryOptions("segments", frozen=2), data())
    for name, buffer in expected.buffers.items():
        torch.testing.assert_close(outcome.buffers[name], buffer, rtol=1e-10, atol=1e-10, msg=name)


def keep_from_training(net):
    """Freeze by hand what comes first, as a user does."""
    first = net[0] if isinstance(net, nn.Sequential) else nn.ModuleList([net.conv1, net.norm1])
    first.requires_grad_(False)
    if not isinstance(net, nn.Sequential):
        net.stage1.requires_grad_(False)
        net.stage2[0].conv2.requires_grad_(False)
    return net


@pytest.mark.parametrize("case", ["batch-None", "batch-block", "group-block", "own-None"])
@pytest.mark.parametrize("recompute", ["none", "norms", "segments"])
def test_what_its_owner_keeps_from_training_stays_so(case, recompute):
    nets = [keep_from_training(MODELS[case]().double()) for _ in range(2)]
    expected = backward(nets[0], MemoryOptions(), data())
    outcome = backward(nets[1], MemoryOptions(recompute, "mask"), data())
    assert {n for n, g in outcome.gradients.items() if g is None} == {
        n for n, g in expected.gradients.items() if g is None
    }
    assert outcome.away_from(expected) <= 1e-10
    assert [p.requires_grad for p in nets[1].parameters()] == [
        p.requires_grad for p in nets[0].parameters()
    ]


def test_freezing_gives_back_only_what_trained_before():
    net = keep_from_training(resnet("block").double())
    before = [parameter.requires_grad for parameter in net.parameters()]
    backward(net, MemoryOptions(frozen=3), data())
    assert [parameter.requires_grad for parameter in net.parameters()] == before
