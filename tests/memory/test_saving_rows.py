"""Which segments are cut along the batch: those known to map each image by itself, no others."""

import pytest
import torch
from saving_cases import generator, resnet
from torch import nn

from mest_fed.memory.activations.rows import is_plain, maps_rows
from mest_fed.memory.activations.segments import Segment, segments_of
from mest_fed.nn import sparsify
from mest_fed.nn.dense import ReLUMaxPool2d
from mest_fed.nn.models.resnet import ResidualBlock
from mest_fed.nn.norms import GroupNorm


class Subclass(nn.Linear):
    """May override anything."""


def hooked(kind):
    layer = nn.Sequential(nn.Linear(6, 6))
    getattr(layer[0], kind)(lambda *_: None)
    return layer


def own_forward():
    layer = nn.Sequential(nn.Linear(6, 6))
    layer[0].forward = lambda x: x.cumsum(0)
    return layer


def sparse():
    layers = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 2)
    return nn.Sequential(sparsify(nn.Sequential(*layers), "unstructured", 0.5)[1], nn.ReLU(True))


ROWS, STEPS, PLANES, IMAGES, VOLUMES = (5, 6), (5, 4, 6), (5, 2, 9), (5, 2, 8, 8), (5, 2, 4, 4, 4)
CUT = [
    (nn.Linear(6, 3), ROWS),
    (nn.Linear(6, 3), STEPS),
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)), STEPS),
    (nn.Sequential(nn.Conv1d(2, 4, 3), nn.GELU(), nn.MaxPool1d(2), nn.Flatten()), PLANES),
    (nn.Sequential(nn.Conv2d(2, 4, 3), GroupNorm(2, 4), ReLUMaxPool2d(), nn.Flatten(-3)), IMAGES),
    (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.PReLU(4)), IMAGES),
    (nn.Sequential(nn.ConvTranspose2d(2, 4, 3), nn.AvgPool2d(2), nn.Flatten(2)), IMAGES),
    (nn.Sequential(nn.Conv3d(2, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), VOLUMES),
    (nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True)), IMAGES),
    (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Softmax(1), nn.GLU(-1)), STEPS),
    (nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.LogSoftmax(-1)), ROWS),
    (nn.LayerNorm((4, 6)), STEPS),
    (ResidualBlock(2, 4, 2, "group"), IMAGES),
    (ResidualBlock(2, 2, 1, "group"), IMAGES),
    (sparse(), IMAGES),
]
WHOLE = [
    (nn.Linear(6, 3), (6,)),
    (nn.Conv2d(2, 4, 3), (2, 8, 8)),
    (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()), (2, 8, 8)),
    (nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2)), (2, 9)),
    (nn.Sequential(nn.Linear(6, 6), nn.Softmax(0)), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.LogSoftmax(-3)), STEPS),
    (nn.Sequential(nn.Linear(6, 6), nn.GLU(-2)), (4, 6)),
    (nn.Sequential(nn.Linear(6, 6), nn.Flatten(0)), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.Flatten(-2)), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.Unflatten(0, (5, 1))), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((5, 6))), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), ROWS),
    (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), ROWS),
    (nn.Sequential(nn.Conv2d(2, 2, 1), nn.InstanceNorm2d(2, track_running_stats=True)), IMAGES),
    (nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, return_indices=True)), IMAGES),
    (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), ROWS),
    (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(24, 6)), STEPS),
    (nn.TransformerEncoderLayer(6, 2, 8), STEPS),
    (nn.LSTM(6, 6), STEPS),
    (Subclass(6, 6), ROWS),
    (nn.Sequential(Subclass(6, 6)), ROWS),
    (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), ROWS),
    (hooked("register_forward_hook"), ROWS),
    (hooked("register_forward_pre_hook"), ROWS),
    (hooked("register_full_backward_hook"), ROWS),
    (own_forward(), ROWS),
    (ResidualBlock(2, 4, 2, "batch"), IMAGES),
]


def draw(shape):
    return torch.randn(shape, generator=generator())


def named(cases):
    return [pytest.param(*case, id=f"{number} {case[1]}") for number, case in enumerate(cases)]


@pytest.mark.parametrize(("module", "shape"), named(CUT))
def test_what_is_cut_maps_each_row_by_itself(module, shape):
    x = draw(shape)
    assert maps_rows(Segment.of("", module, "forward"), x)
    with torch.no_grad():
        rows = torch.cat([module(x[:2].clone()), module(x[2:].clone())])
        torch.testing.assert_close(module(x.clone()), rows)


@pytest.mark.parametrize(("module", "shape"), named(WHOLE))
def test_what_may_mix_rows_is_whole(module, shape):
    assert not maps_rows(Segment.of("", module, "forward"), draw(shape))


def test_other_tensors_are_taken_whole():
    segment = Segment.of("", nn.Linear(6, 6), "forward")

    class Marked(torch.Tensor):
        pass

    assert maps_rows(segment, draw(ROWS))
    assert not maps_rows(segment, draw(ROWS).as_subclass(Marked))
    assert not maps_rows(segment, draw(ROWS).to_sparse())
    assert not maps_rows(segment, torch.tensor(1.0))


def test_segments_of_our_models_are_cut_where_no_statistics_are_taken_over_the_batch():
    net = resnet("block", "group")
    x = draw((3, 1, 8, 8))
    for segment in segments_of(net):
        assert maps_rows(segment, x), segment.name
        x = segment.function(x)
    stem, *_ = segments_of(net)
    net.norm1.register_forward_hook(lambda *_: None)
    assert not maps_rows(stem, draw((3, 1, 8, 8)))


def test_a_method_of_the_instance_may_do_anything():
    convolution = nn.Conv2d(3, 4, 3)
    assert is_plain(convolution)
    plain = convolution._conv_forward
    convolution._conv_forward = lambda x, *rest: plain(x - x.mean(0, keepdim=True), *rest)
    assert not is_plain(convolution)
