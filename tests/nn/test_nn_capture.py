"""Which modules are programs, and the one line that says why another is none."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mest_fed.errors import InputError
from mest_fed.nn import sparsify
from mest_fed.nn.capture import INPUT, capture
from mest_fed.nn.capture_schemes import weights_of_kernels
from mest_fed.nn.dense import Conv2d, ReLUMaxPool2d
from mest_fed.nn.norms import GroupNorm
from mest_fed.runtime.reference import Reference
from mest_fed.sparsity.schemes import Channel

IMAGES = (2, 4, 6, 6)


def names_of(captured):
    return [it.name for it in captured.program.operators]


class Called(nn.Module):
    """A module whose forward is a function of a tensor."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def last_state(x, rnn):
    _, (hidden, _) = rnn(x)
    return hidden[-1]


GRU = nn.GRU(6, 3, 2, batch_first=True, bias=False)

#: A module, the shape of its input.
TAKEN = {
    "convolution": (nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGES),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), IMAGES),
    "ours": (Conv2d(4, 6, (1, 3), (2, 1), (0, 1)), IMAGES),
    "series": (nn.Conv1d(4, 6, 3, 2, padding=1), (2, 4, 9)),
    "tokens": (nn.Linear(4, 3), (2, 5, 4)),
    "pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGES),
    "pool-series": (nn.MaxPool1d(2), (2, 4, 9)),
    "relu-pool": (ReLUMaxPool2d(), IMAGES),
    "norm": (nn.GroupNorm(2, 4), IMAGES),
    "batch-norm": (nn.BatchNorm1d(4), (3, 4)),
    "residual": (Called(lambda x, norm: norm(x, residual=x, relu=True), GroupNorm(2, 4)), IMAGES),
    "functions": (Called(lambda x: F.hardswish(F.silu(F.relu6(torch.add(x, x))))), IMAGES),
    "methods": (Called(lambda x: x.relu().mul(x).mean((2, 3), keepdim=True).flatten(1)), IMAGES),
    "views": (Called(lambda x: torch.relu(x.view(x.size(0), -1).unsqueeze(1)).squeeze(1)), IMAGES),
    "shape": (Called(lambda x: torch.relu(x.reshape(x.shape[0] * x.shape[1], -1))), IMAGES),
    "identity": (nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.ReLU()), IMAGES),
    "series-pools": (nn.Sequential(nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1)), (2, 4, 9)),
    "largest": (nn.AdaptiveMaxPool2d(1), IMAGES),
    "sizes": (nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d((None, 1))), IMAGES),
    "functions-2": (
        Called(lambda x: torch.sigmoid(F.elu(torch.tanh(F.leaky_relu(x, 0.2))))),
        IMAGES,
    ),
    "pools": (Called(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 3)), IMAGES),
    "numbers": (Called(lambda x: (1 - x) / 2 + 3 * -x - 0.5), IMAGES),
    "minus": (Called(lambda x: x - torch.relu(x)), IMAGES),
    "excite": (Called(lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid()), IMAGES),
    "excite-2": (Called(lambda x: F.hardsigmoid(x.mean((2, 3), keepdim=True)) * x), IMAGES),
    "join": (Called(lambda x: torch.cat([x, x.relu(), x], 1)), IMAGES),
    "join-rows": (Called(lambda x: torch.cat([x, x.relu()], dim=-1)), IMAGES),
    "chunks": (Called(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), IMAGES),
    "parts": (Called(lambda x: torch.cat(torch.split(x, [1, 2, 3], -1)[1:], 3)), IMAGES),
    "halves": (Called(lambda x: x.split(4, dim=2)[1].relu()), IMAGES),
    "order": (Called(lambda x: x.permute(0, 2, 3, 1).transpose(1, -1).softmax(-1)), IMAGES),
    "sum": (Called(lambda x: x.sum((2, 3))), IMAGES),
    "large": (nn.Upsample(scale_factor=2), IMAGES),
    "larger": (Called(lambda x: F.interpolate(x, (12, 6))), IMAGES),
    "position": (Called(lambda x: torch.relu(x)[:, -1]), IMAGES),
    "softmax": (nn.Softmax(-1), IMAGES),
    "lstm": (Called(lambda x, rnn: rnn(x)[0], nn.LSTM(6, 3, 2, batch_first=True)), (2, 4, 6)),
    "last": (Called(last_state, nn.LSTM(6, 3, 2, batch_first=True)), (2, 4, 6)),
    "gru": (
        Called(lambda x, rnn: rnn(x)[1][0] + rnn(x)[0][:, 0], GRU),
        (2, 4, 6),
    ),
    "contiguous": (Called(lambda x, linear: linear(x.contiguous()), nn.Linear(6, 2)), IMAGES),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_module_is_a_program(name):
    module, shape = TAKEN[name]
    module = module.double() if list(module.parameters()) else module
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    captured = capture(module.float(), shape)
    run = Reference(captured.program, captured.arrays(), "float64")
    run.step({INPUT: x.numpy()})
    expected = module.double()(x).detach().numpy()
    np.testing.assert_allclose(run.read(captured.output), expected, rtol=1e-12, atol=1e-12)


class Second(nn.Module):
    def forward(self, x, mask):
        return x + mask


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x):
        return torch.relu(x), x


class OwnConv(nn.Conv2d):
    pass


#: A module, and what is said of it.
REFUSED = {
    "recurrent": (nn.Sequential(nn.RNN(6, 3)), "module '0', a RNN, has no operator"),
    "steps": (nn.Sequential(nn.GRU(6, 3)), "^0: a GRU with batch_first = False has no operator"),
    "both-ways": (nn.LSTM(6, 3, bidirectional=True, batch_first=True), "with bidirectional = True"),
    "sequence": (nn.LSTM(6, 3, batch_first=True), "of one sequence, has no operator"),
    "attention": (nn.MultiheadAttention(6, 2), "module '0', a MultiheadAttention, has no operator"),
    "dilation": (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), r"0: a Conv2d with dilation"),
    "mode": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode = 'reflect'"),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), "padding = 'same' has no operator"),
    "channels": (nn.Conv2d(3, 4, 3), "x has shape .*; allowed: 3 channels"),
    "kernel": (nn.Conv2d(4, 4, 9), "kernel has value 9; allowed: at most 6"),
    "affine": (nn.GroupNorm(2, 4, affine=False), "no weight or no bias has no operator"),
    "statistics": (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
    "average": (nn.BatchNorm2d(4, momentum=None), "momentum = None"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "indices or a dilation"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "a setting of its own"),
    "mish": (nn.Mish(), "a Mish, has no operator"),
    "approximate": (nn.GELU("tanh"), "an approximation has no operator"),
    "function": (Called(lambda x: torch.cumsum(x, 1)), "function 'cumsum' has no operator"),
    "method": (Called(lambda x: x.cumsum(1)), "method 'cumsum' has no operator"),
    "quotient": (Called(lambda x: x / x), "a division by a tensor has no operator"),
    "alpha": (Called(lambda x: torch.add(x, x, alpha=2)), "alpha = 2 has no operator"),
    "rows": (Called(lambda x: torch.cat([x, x])), "one behind the other in the batch"),
    "axis": (nn.Softmax(1), "dim = 1 of .* has no operator; allowed: the last one"),
    "uneven": (
        nn.AdaptiveAvgPool2d(4),
        "output_size of 0 = 4 is not allowed; allowed: what divides",
    ),
    "linear": (nn.Upsample(scale_factor=2, mode="bilinear"), "mode = 'bilinear'"),
    "settings": (Called(lambda x: x.softmax(-1, None)), "more than 1 settings"),
    "shapes": (Called(lambda x: x + x.mean((2, 3))), "add: add: b has shape"),
    "mean": (Called(lambda x: x.mean(0)), "the mean over dim = 0"),
    "part": (Called(lambda x: torch.relu(x[:1])), "a part of a tensor has no operator"),
    "view": (Called(lambda x: x.view(5, -1)), "invalid for input of size"),
    "attribute": (Called(lambda x: x + x.T), "attribute 'T' of a tensor is not known"),
    "keyword": (Called(lambda x: F.relu(x, again=True)), "again"),
    "branch": (Branching(), "Branching cannot be traced"),
    "second": (Second(), "a second input, 'mask'"),
    "two": (Two(), "does not return one tensor"),
    "nothing": (nn.Identity(), "does not return one tensor"),
    "subclass": (OwnConv(4, 4, 3), "has no operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_operator_is_named_in_one_line(name):
    module, says = REFUSED[name]
    with pytest.raises(InputError, match=says) as caught:
        capture(module, IMAGES)
    assert "\n" not in str(caught.value)


class OwnScheme(Channel):
    """Whole input channels."""

    def __init__(self, shape):
        super().__init__(shape, axis="in")


@pytest.mark.parametrize("scheme", ["pattern", "channel", "block:3", f"{__name__}:OwnScheme"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_scheme_is_a_program(scheme, bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 5, 3, padding=1, bias=bias),
        nn.Conv2d(5, 6, 3, padding=1, bias=bias),
        nn.Conv2d(6, 6, 3, 2, bias=bias),
        nn.Flatten(),
        nn.Linear(24, 7, bias=bias),
        nn.Linear(7, 3),
    )
    sparsify(model, scheme, 0.4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    captured = capture(model, IMAGES)
    run = Reference(captured.program, captured.arrays(), "float64")
    x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0)).double()
    run.step({INPUT: x.numpy()})
    expected = model.double()(x).detach().numpy()
    np.testing.assert_allclose(run.read(captured.output), expected, rtol=1e-10, atol=1e-10)


def test_kernels_as_single_weights():
    slots = torch.tensor([1, 8, -1], dtype=torch.int32)
    cells = ((0, 3), (1, 2), (4, 8))
    found = weights_of_kernels(slots, cells, 9)
    assert found.tolist() == [1, 2, 18 + 4, 18 + 8, -1, -1]
    assert found.dtype == torch.int32


def test_a_shell_on_the_meta_device_is_a_program_too():
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    assert names_of(capture(module, IMAGES)) == ["conv2d", "relu"]


def test_names_are_those_of_a_state_dict():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    sparse = sparsify(
        nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)), "block", 0.5
    )
    shared = capture(model, (2, 6))
    assert set(shared.tensors) == {"0.weight", "0.bias", "2.bias"}
    captured = capture(sparse, (2, 6))
    assert {"1.values", "1.slots", "1.bias"} <= set(captured.tensors)
    assert "1.slots" not in captured.trained
    numbers = captured.program.numbers
    buffers = captured.program.buffers
    assert buffers[numbers["1.slots"]].dtype == "int32"
    assert buffers[numbers["1.values"]].shape == tuple(sparse[1].values.shape)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    before = {name: it.clone() for name, it in model.state_dict().items()}
    random = torch.random.get_rng_state()
    captured = capture(model, IMAGES)
    captured.arrays()["0.weight"][:] = 7
    assert names_of(captured) == ["batch_norm", "dropout"]
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert not model.training


class Reversed(torch.autograd.Function):
    """The identity, with a backward pass of its own, which a trace does not see."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_a_backward_pass_of_a_user_s_own_is_no_program():
    model = nn.Sequential(nn.Linear(4, 4), Called(lambda x: Reversed.apply(x)), nn.Linear(4, 2))
    with pytest.raises(InputError, match="autograd function 'Reversed' has no operator"):
        capture(model, (2, 4), "float32")
    x = torch.ones(1, requires_grad=True)
    Reversed.apply(x).backward()  # itself is as it was
    assert x.grad == -1


def test_a_model_that_cannot_be_traced_says_why_in_a_line():
    def fails(x):
        raise RuntimeError("a first line,\nand a second one. " + "More of it. " * 100)

    model = nn.Sequential(Called(fails))
    with pytest.raises(InputError) as caught:
        capture(model, (2, 4), "float32")
    said = str(caught.value)
    assert said.startswith("Sequential cannot be traced: a first line, and a second one. More of")
    assert said.endswith("More of it. …")
