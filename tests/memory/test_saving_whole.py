"""Segments that are run again whole: what stands in memory, how often they run, what is refused."""

import gc
import weakref

import pytest
import torch
from saving_cases import data, generator, resnet, users_own
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mest_fed.errors import MestFedError
from mest_fed.memory import FORMATS, MemoryOptions, memory_saving
from mest_fed.memory.activations import micro_chunks as cutting
from mest_fed.sparsity import Mask


class Noting(nn.Module):
    """Notes its runs, and the activations that it makes."""

    def __init__(self, change=lambda self, x: x):
        super().__init__()
        self.linear, self.change = nn.Linear(4, 4), change
        self.register_buffer("large", torch.ones(64, 32))
        self.register_buffer("small", torch.ones(()))
        self.held = [Runs()]

    def forward(self, x):
        self.held[0].made.append(None)
        y = self.linear(x).tanh()
        self.held[0].made[-1] = weakref.ref(y)
        return self.change(self, y.sin()) * self.small * self.large[0, 0]


class Runs:
    """An object, which is shared by both runs."""

    def __init__(self):
        self.made = []


def noting(*change):
    torch_before = torch.get_rng_state()
    torch.manual_seed(0)
    net = nn.Sequential(Noting(*change), nn.Linear(4, 2)).train()
    torch.set_rng_state(torch_before)
    return net, net[0].held[0].made, torch.randn(5, 4, generator=generator())


@pytest.mark.soak
def test_it_keeps_nothing_within_and_runs_once_more_for_each_backward_pass():
    net, made, x = noting()
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(x).sum()
        gc.collect()
        assert [reference() for reference in made] == [None]
        loss.backward(retain_graph=True)
        assert len(made) == 2
        gc.collect()
        assert made[1]() is None
        loss.backward()
        assert len(made) == 3
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_it_keeps_its_packed_input_until_the_graph_goes():
    net, _, _ = noting()
    x = torch.randn(64, 4, generator=generator())
    kept = weakref.ref(x.untyped_storage())
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(x).sum()
        del x
        assert kept() is not None
        loss.backward()
        gc.collect()
        assert kept() is None  # although the loss lives


def step_between(net):
    with torch.no_grad():
        net[0].linear.weight.add_(1)


def large_buffer_between(net):
    net[0].large.add_(1)


@pytest.mark.parametrize("change", [step_between, large_buffer_between])
def test_what_it_reads_must_not_change_before_backward(change):
    """Plain training refuses it as well, or would take gradients at weights that are no more."""
    net, _, x = noting()
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(x).sum()
        change(net)
        with pytest.raises(MestFedError, match=r"of segment 0 was changed in place between its"):
            loss.backward()


@pytest.mark.parametrize("net", [users_own, resnet, lambda: resnet("block", "group")])
def test_no_segment_takes_other_weights_than_those_of_its_forward_pass(net):
    net = net().train()
    images, _ = data(4, dtype=torch.float32)
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(images).sum()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1)
        with pytest.raises((MestFedError, RuntimeError), match=r"changed in place|modified by an"):
            loss.backward()


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("wants_images", [True, False])
def test_no_mutation_comes_between_forward_and_backward(norm, wants_images):
    for more, said in ((0, r"changed in place (after|between)"), (1, r"weights of segment stage1")):
        net = resnet("block", norm).train()
        images, _ = data(4, dtype=torch.float32)
        with memory_saving(net, MemoryOptions("segments")) as forward:
            loss = forward(images.requires_grad_(wants_images)).sum()
            layer = net.stage1[0].conv1
            slots = torch.arange(len(layer.slots) + more, dtype=torch.int32)
            assert not torch.equal(slots, layer.slots)
            layer.replace_mask(Mask(layer.layout, slots.numpy()))
            with pytest.raises(MestFedError, match=said):
                loss.backward()


def test_small_buffers_may_change_before_backward():
    net, _, x = noting()
    expected = torch.autograd.grad(net(x).sum(), net[0].linear.weight)
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(x).sum()
        net[0].small.add_(1)
        torch.testing.assert_close(torch.autograd.grad(loss, net[0].linear.weight), expected)
    assert net[0].small == 2


def grows_its_weight(self, x):
    with torch.no_grad():
        self.linear.weight.add_(1)
    return x


def test_a_segment_that_changes_its_own_weight_is_refused():
    net, _, x = noting(grows_its_weight)
    with (
        memory_saving(net, MemoryOptions("segments")) as forward,
        pytest.raises(MestFedError, match=r"segment 0 changes a parameter of shape \(4, 4\) in"),
    ):
        forward(x)


@pytest.mark.parametrize(
    "other", [lambda x: x.exp().square(), lambda x: x, lambda x: torch.cat((x, x)).square()[:5]]
)
def test_a_segment_that_does_not_repeat_itself_is_refused(other):
    net, _, x = noting(lambda self, y: y.square() if len(self.held[0].made) == 1 else other(y))
    with memory_saving(net, MemoryOptions("segments")) as forward:
        loss = forward(x).sum()
        with pytest.raises(MestFedError, match="segment 0 computes something else when it is run"):
            loss.backward()


def test_gradients_of_gradients_are_right_or_refused():
    def penalty(net, forward, x):
        x = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(forward(x).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), list(net.parameters())[:1])[0]

    net, _, x = noting()
    whole = nn.Sequential(net[0], nn.Sequential(net[1], nn.Dropout(0.0)))
    expected = penalty(whole, whole, x)
    with memory_saving(whole, MemoryOptions("segments")) as forward:
        torch.testing.assert_close(penalty(whole, forward, x), expected)
    with (
        memory_saving(net, MemoryOptions("segments")) as forward,
        pytest.raises(MestFedError, match=r"segment 1 is recomputed in micro_chunks.*create_graph"),
    ):
        penalty(net, forward, x)


def test_infinite_masks_are_masks_in_every_format():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, mask):
            return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Attends(), Attends()])

        def forward(self, x, mask=None):
            for block in self.blocks:
                x = x + block(x, mask)
            return x

    net = Net()
    x = torch.randn(2, 64, 8, generator=generator())
    mask = torch.full((64, 64), float("-inf")).triu(1)
    net(x, mask=mask).square().sum().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    for recompute in ("none", "norms", "segments"):
        for saved in FORMATS:
            net.zero_grad()
            with memory_saving(net, MemoryOptions(recompute, saved)) as forward:
                forward(x, mask=mask).square().sum().backward()
            for parameter, gradient in zip(net.parameters(), expected, strict=True):
                error = (parameter.grad - gradient).norm()
                assert error <= 0.02 * gradient.norm() + 1e-3, (recompute, saved)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("net", [users_own, lambda: resnet("block", "group"), resnet])
def test_segments_run_again_in_the_types_of_their_first_run(net, inside, monkeypatch):
    monkeypatch.setattr(cutting, "CHUNK_BYTES", 3 * 4 * 64)
    images, _ = data(6, dtype=torch.float32)
    found = []
    for memory in (MemoryOptions(), MemoryOptions("segments")):
        model = net().train()
        with torch.random.fork_rng(devices=[]), memory_saving(model, memory) as forward:
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16):
                loss = forward(images).float().square().sum()
                if inside:
                    loss.backward()
            if not inside:
                loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert found[0].dtype == torch.float32
    assert (found[1] - found[0]).norm() <= 0.02 * found[0].norm()  # bfloat16: 2^-8


class ReluForGelu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].relu() if func is functional.gelu else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inside", [True, False])
def test_segments_run_again_in_the_function_modes_of_their_first_run(inside):
    def gelu():
        layers = (nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2))
        return nn.Sequential(*layers)

    x, found = torch.linspace(-1, 1, 24).view(4, 6), []
    weights = [torch.randn(it.shape, generator=generator(0)) for it in gelu().parameters()]
    for memory in (MemoryOptions(), MemoryOptions("segments")):
        model = gelu()
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight.clone()
        with memory_saving(model, memory) as forward:
            with ReluForGelu():
                loss = forward(x).square().sum()
                if inside:
                    loss.backward()
            if not inside:
                loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)
