"""What stands between forward and backward: one copy of each tensor, and never another's."""

import gc
import weakref

import pytest
import torch
from saving_cases import IMAGE, backward, data, generator, resnet, users_own
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from mest_fed.errors import MestFedError
from mest_fed.memory import FORMATS, MemoryOptions, memory_saving
from mest_fed.memory.activations.saved_tensors import LEAST_BYTES, Packed, SavedActivations


class Noted(Packed):
    """A packed tensor that is itself, and counts."""

    made: list = []  # noqa: RUF012

    def __init__(self, x):
        super().__init__(x)
        self.x = x.detach().clone()
        Noted.made.append(weakref.ref(self))

    def images(self, first, last):
        return self.x[first:last]


@pytest.fixture(autouse=True)
def fresh():
    Noted.made.clear()


def activations(own=()):
    return SavedActivations(Noted, own, renormalise=False)


def leaf(*shape):
    return torch.rand(shape, generator=generator(), requires_grad=True)


def test_two_nodes_that_save_one_tensor_share_one_copy():
    x = leaf(32, 64)
    with activations():
        y = x.exp()  # saves its result
        z = y.square() + y.sin()  # both save y
    assert len(Noted.made) == 1
    z.sum().backward()
    e = x.detach().exp()
    torch.testing.assert_close(x.grad, (2 * e + e.cos()) * e)
    del y, z
    gc.collect()
    assert Noted.made[0]() is None  # and it is gone with them


def test_a_changed_tensor_is_another_one():
    x, noise = leaf(32, 64), torch.rand(32, 64, generator=generator(1))
    with activations():
        y = x * 1.0
        first = (y * noise.requires_grad_()).sum()  # saves y, which may change once it is packed
        y.relu_()
        second = y.square().sum()
    assert len({id(ref()) for ref in Noted.made}) == len(Noted.made) >= 3
    (first + second).backward()
    torch.testing.assert_close(noise.grad, x.detach())


def test_an_address_that_comes_back_is_no_false_hit():
    """The tensors between are freed, so that the next is often built where they stood."""
    x = leaf(32, 64)
    parts = []
    with activations():
        for number in range(50):
            parts.append((x + number).square().sum())  # saves x + number, which nobody else holds
    assert len(Noted.made) == 50
    sum(parts).backward()
    torch.testing.assert_close(x.grad, sum(2 * (x.detach() + number) for number in range(50)))


def test_parameters_and_what_is_small_stay_as_they_are():
    weight, x = nn.Parameter(torch.rand(64, 64, generator=generator())), leaf(32, 64)
    few = leaf(4, 4)
    assert few.nbytes < LEAST_BYTES <= x.nbytes
    with activations([weight]):
        y = (x @ weight.t()).sum() + few.square().sum()  # saves x, the weight's view, and few
    assert [made().x.shape for made in Noted.made] == [x.shape]
    y.backward()
    torch.testing.assert_close(few.grad, 2 * few.detach())


@pytest.mark.parametrize("saved", FORMATS)
@pytest.mark.parametrize("recompute", ["none", "norms", "segments"])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_nothing_is_saved(saved, recompute, training):
    for net in (resnet("block"), users_own()):
        net.train(training)
        images, _ = data(4, dtype=torch.float32)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = net(images)
            torch.manual_seed(0)
            with memory_saving(net, MemoryOptions(recompute, saved)) as forward:
                logits = forward(images)
        assert logits.grad_fn is None
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("recompute", ["none", "norms", "segments"])
def test_evaluation_within_training(recompute):
    net = resnet("block").double()
    images, labels = data(8)
    with memory_saving(net, MemoryOptions(recompute, "mask")) as forward:
        before = backward(resnet("block").double(), MemoryOptions(), (images, labels))
        net.eval()
        assert torch.equal(forward(images), net(images))
        assert int(net.norm1.num_batches_tracked) == 0
        net.train()
        cross_entropy(forward(images), labels).backward()
    torch.testing.assert_close(
        net.conv1.weight.grad, before.gradients["conv1.weight"], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("recompute", ["norms", "segments"])
def test_two_forward_passes_before_one_backward(recompute):
    outcomes = []
    for memory in (MemoryOptions(), MemoryOptions(recompute, "mask")):
        net = resnet("block").double().train()
        with memory_saving(net, memory) as forward:
            losses = [cross_entropy(forward(x), y) for x, y in (data(8), data(5, seed=6))]
            sum(losses).backward()
        outcomes.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-10, atol=1e-12)


class Overwrites(nn.Module):
    """Reads its input with a ReLU in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x):
        return self.conv(functional.relu_(x))


def test_a_segment_that_changes_its_input_is_refused():
    net = nn.Sequential(nn.Conv2d(*IMAGE[:1], 2, 3), Overwrites(), nn.Flatten(), nn.Linear(32, 10))
    images, labels = data(4, dtype=torch.float32)
    with (
        memory_saving(net, MemoryOptions("segments")) as forward,
        pytest.raises(MestFedError, match="1 changes its input in place; it cannot be recomputed"),
    ):
        forward(images)
    with memory_saving(
        net, MemoryOptions("norms")
    ) as forward:  # which asks for nothing of the kind
        cross_entropy(forward(images), labels).backward()


@pytest.mark.parametrize("recompute", ["norms", "segments"])
def test_what_is_changed_after_it_was_kept_is_an_error_as_in_plain_training(recompute):
    class AddsInPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
            self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, x):
            x = self.first(x)
            return self.last(x.add_(self.body(x)).flatten(1))  # the body's input is not what it was

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward(AddsInPlace().double(), MemoryOptions(), data())
    with pytest.raises(
        MestFedError, match=r"\(8, 4, 6, 6\) was changed in place after it was kept"
    ):
        backward(AddsInPlace().double(), MemoryOptions(recompute), data())
