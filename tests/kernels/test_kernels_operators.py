"""The products as torch operators: torch's own checks, compilers, fake tensors, FLOP counts."""

import math

import pytest
import torch
from kernel_cases import PLANES, Sizes, every
from test_kernels_refusals import ARGUMENTS, GOOD, outputs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mest_fed.kernels import Channels, Choice, ConvGeometry, Kernels, Strips, channels, native, ops
from mest_fed.nn import sparsify

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled kernels")
SCHEMES = ("unstructured", "block", "block:3", "pattern", "channel")
STRIDED = {
    "geometry": [2, 1, 1, 0, 1, 2],
    "grad": torch.ones(2, 4, 4, 4),
    "cells": torch.tensor([[0, 4], [1, 2]], dtype=torch.int32),
    "values": torch.ones(2, 2),
    "plane": 1,
}


@pytest.mark.parametrize(
    "changes", [{}, {"bias": None}, STRIDED], ids=["strips", "bare", "kernels"]
)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_torch_accepts_the_operators(name, changes):
    arguments = tuple({**GOOD, **changes}[key] for key in ARGUMENTS[name].split())
    # Autograd goes through SparseProduct: of operators without gradient formulas torch's other
    # checks hold for arguments that ask for no gradient.
    torch.library.opcheck(getattr(ops.OPERATORS, name).default, arguments)


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operator_alone_says_that_it_has_no_gradient(name):
    first = ARGUMENTS[name].split()[0]
    result = outputs(name, **{first: GOOD[first].clone().requires_grad_()})[-1]
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        result.sum().backward()


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("changes", [{}, STRIDED], ids=["strips", "kernels"])
def test_fake_tensors_have_the_shapes_of_real_ones(name, changes):
    real = outputs(name, **changes)
    with FakeTensorMode() as mode:
        fakes = {
            key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for key, value in {**GOOD, **changes}.items()
        }
        fake = outputs(name, **fakes)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def small_model(scheme):
    """Return a model with a sparse convolution and a sparse linear layer."""
    layers = (
        nn.Conv2d(1, 6, 3),
        nn.Tanh(),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.Flatten(),
        nn.Linear(160, 12),
        nn.Tanh(),
        nn.Linear(12, 3),
    )
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return sparsify(model, scheme, 0.2)


def results(model, run, x):
    """Return the output and all gradients."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


# torch's compiler warns of its own way to trace an autograd function.
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_compiled_model_gives_the_same_bits_in_one_graph(scheme):
    model = small_model(scheme)
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = results(model, model, x)
    torch._dynamo.reset()
    explanation = torch._dynamo.explain(model)(x)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for a, b in zip(results(model, compiled, x), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("cut", [Strips(1), Strips(4), Kernels(((0, 2, 3), (1, 4, 8)))])
def test_flops_are_two_for_each_active_weight_and_position(cut, plane):
    sizes = Sizes((8, 3, 3, 3), cut, (5, 3, 7, 9), ConvGeometry((2, 1), (1, 0)))
    case = sizes.case(sizes.num_granules // 3)
    once = 2 * case.values.numel() * 5 * math.prod(case.upstream.shape[2:])
    assert flops(case, every(plane)) == {"conv2d": once, "conv2d_backward": 2 * once}
    other = PLANES[plane == PLANES[0]]  # both gradients at once take one kind of planes
    separate = dict.fromkeys(("conv2d", "conv2d_input", "conv2d_values"), once)
    assert flops(case, Choice(plane, plane, other)) == separate


def flops(case, choice):
    """Count what each operator multiplies and adds, forward and back."""
    with FlopCounterMode(display=False) as counter:
        case.gradients(choice)
    counts = counter.get_flop_counts()["Global"].items()
    return {str(operator).removeprefix("mest_fed."): count for operator, count in counts}


@pytest.mark.parametrize("axis", ["out", "in"])
def test_flops_of_active_channels(axis):
    sizes = Sizes((8, 4, 3, 3), Channels(axis), (5, 4, 7, 9))
    case = sizes.case(2)
    with FlopCounterMode(display=False) as counter:
        channels.forward(case.x, case.values, case.bias, case.weight, case.geometry)
    assert counter.get_total_flops() == 2 * case.values.numel() * 5 * 5 * 7
