"""Whatever a model computes and however it is trained: with memory options it is as without.

Outputs, gradients, buffers, attributes and random generators, for a table of models and of uses.
"""

import random

import numpy as np
import pytest
import torch
from saving_users import USERS, build
from torch import Tensor, nn
from torch.func import functional_call

from mest_fed.memory import MemoryOptions, memory_saving
from mest_fed.memory.activations import saved_tensors as hooks
from mest_fed.nn.optimizers import SGD


def threes(shape):
    """StorageFormat a batch into micro_chunks of three, whatever the size of an image."""
    return iter([(first, min(shape[0], first + 3)) for first in range(0, shape[0], 3)])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    for name in ("recompute", "batch_norm_block", "batch_norm_stem"):
        monkeypatch.setattr(f"mest_fed.memory.activations.{name}.micro_chunks", threes)
    monkeypatch.setattr(hooks, "LEAST_BYTES", 1)  # so that all that can be packed is


def loss_of(y):
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()


def plain_backward(net, forward, x):
    y = forward(x)
    loss_of(y).backward()
    return [y]


def gradients_of_parameters(net, forward, x):
    trained = [p for p in net.parameters() if p.requires_grad]
    return torch.autograd.grad(loss_of(forward(x)), trained)


def gradient_of_the_input(net, forward, x):
    x.requires_grad_()
    (dx,) = torch.autograd.grad(loss_of(forward(x)), x)
    return [dx]


def attack_then_train(net, forward, x):
    x.requires_grad_()
    (dx,) = torch.autograd.grad(loss_of(forward(x)), x)
    loss_of(forward((x + 0.01 * dx.sign()).detach())).backward()
    return []


def attack_a_model_in_evaluation(net, forward, x):
    net.eval()
    x.requires_grad_()
    return torch.autograd.grad(loss_of(forward(x)), x)


def backward_twice(net, forward, x):
    x.requires_grad_()
    y = forward(x)
    loss_of(y).backward(retain_graph=True)
    y.square().sum().backward()
    return [x.grad]


def two_passes_before_backward(net, forward, x):
    (loss_of(forward(x)) + loss_of(forward(x * 0.5))).backward()
    return []


def evaluation_before_backward(net, forward, x):
    loss = loss_of(forward(x))
    net.eval()
    loss.backward()
    return []


def freezing_before_backward(net, forward, x):
    loss = loss_of(forward(x))
    flags = [p.requires_grad for p in net.parameters()]
    net.requires_grad_(False)
    loss.backward()
    for parameter, flag in zip(net.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return []


def parameters_of_a_caller(net, forward, x):
    own = {n: (p * 1.1) if p.requires_grad else p for n, p in net.named_parameters()}
    if not isinstance(forward, nn.Module):
        forward = net
    loss_of(functional_call(net, own, (x,))).backward()
    return []


def an_empty_batch(net, forward, x):
    y = forward(x[:0])
    y.sum().backward()
    return [y]


def without_gradients(net, forward, x):
    with torch.no_grad():
        return [forward(x)]


def steps_that_consume(net, forward, x):
    optimizer = SGD(net.parameters(), 0.01, momentum=0.9, release_gradients=True)
    for _ in range(2):
        optimizer.zero_grad()
        for part in (x, x.flip(-1)):
            loss_of(forward(part)).backward()
        optimizer.step()
    optimizer.close()
    return []


USES = [
    plain_backward,
    gradients_of_parameters,
    gradient_of_the_input,
    attack_then_train,
    attack_a_model_in_evaluation,
    backward_twice,
    two_passes_before_backward,
    evaluation_before_backward,
    freezing_before_backward,
    parameters_of_a_caller,
    an_empty_batch,
    without_gradients,
    steps_that_consume,
]


def outcome(name, memory, use):
    """Return all that a use leaves: its results, gradients, attributes, and what is drawn next."""
    net, x = build(name)
    random.seed(4)
    np.random.seed(4)  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        with memory_saving(net, memory) as forward:
            results = use(net, forward, x)
        drawn = [torch.rand(1), random.random(), np.random.rand()]  # noqa: NPY002
    return [
        [result.detach() for result in results],
        {n: p.grad for n, p in net.named_parameters()},
        dict(net.named_parameters()),
        dict(net.named_buffers()),
        {n: attributes(m) for n, m in net.named_modules()},
        drawn,
    ]


def attributes(module):
    shown = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            shown[name] = value.detach()
        elif isinstance(value, torch.Generator):
            shown[name] = value.get_state()
        elif not name.startswith("_") and not callable(value) and name not in ("layout", "choice"):
            shown[name] = str(getattr(value, "bit_generator", value) and value)
    return shown


def alike(ours, expected, where=""):
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        ours, expected = [(d, d) and [(k, d[k]) for k in expected] for d in (ours, expected)]
        for (key, a), (_, b) in zip(ours, expected, strict=True):
            alike(a, b, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected), where
        for number, (a, b) in enumerate(zip(ours, expected, strict=True)):
            alike(a, b, f"{where}.{number}")
    elif isinstance(expected, Tensor):
        assert isinstance(ours, Tensor), where
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10, msg=where)
    else:
        assert ours == expected, where


def check(name, use, *memory):
    try:
        expected = outcome(name, MemoryOptions(), use)
    except (RuntimeError, ValueError, UserWarning) as error:
        pytest.skip(f"not without memory options either: {str(error).splitlines()[0]}")
    for each in memory:
        alike(outcome(name, each, use), expected, f"{each}")


@pytest.mark.soak
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("name", USERS)
def test_training_with_recomputed_segments_is_training_without(name, use):
    check(name, use, MemoryOptions("segments"))


@pytest.mark.parametrize("use", [backward_twice, attack_then_train], ids=lambda use: use.__name__)
@pytest.mark.parametrize("name", USERS)
def test_so_is_training_with_other_exact_savings(name, use):
    check(
        name,
        use,
        MemoryOptions("segments", "mask"),
        MemoryOptions("norms"),
        MemoryOptions(saved="mask"),
    )


def test_a_sum_over_the_batch_by_hand():
    net = nn.Sequential(USERS["sum over the batch"][0]()[0][0]).train()
    nn.init.ones_(net[0].w)
    with memory_saving(net, MemoryOptions("segments")) as forward:
        y = forward(torch.ones(2, 65536))
    assert y[1].unique().tolist() == [2.0]


@pytest.mark.parametrize("recompute", ["none", "norms", "segments"])
def test_the_gradient_of_an_input_by_hand(recompute):
    net, x = nn.Sequential(nn.Linear(1, 1, bias=False)), torch.ones(1, 1, requires_grad=True)
    nn.init.constant_(net[0].weight, 2.0)
    with memory_saving(net, MemoryOptions(recompute, "int8")) as forward:
        (dx,) = torch.autograd.grad(forward(x).sum(), x)
        assert (dx.item(), net[0].weight.grad) == (2.0, None)
        loss = forward(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert (x.grad.item(), net[0].weight.grad.item()) == (4.0, 2.0)


def test_a_counter_by_hand():
    class Counts(nn.Linear):
        def forward(self, x):
            self.steps += 1
            return super().forward(x)

    net = nn.Sequential(Counts(4, 4), nn.Linear(4, 1))
    net[0].register_buffer("steps", torch.zeros((), dtype=torch.int64))
    with memory_saving(net, MemoryOptions("segments")) as forward:
        forward(torch.ones(4096, 4)).sum().backward()
    assert net[0].steps == 1
