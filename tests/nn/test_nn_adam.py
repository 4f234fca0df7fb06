"""Adam and AdamW against torch's, on dense and sparse layers; what all our optimizers share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import draw, small_resnet
from test_nn_optimizers import TwoHeads, train
from torch import nn
from torch.nn.functional import cross_entropy

from mest_fed.catalogue import OPTIMIZERS
from mest_fed.errors import InputError
from mest_fed.nn import Mutator, SparseLayer, sparsify
from mest_fed.nn.client_optimizer import FIRST, REFERENCE, SECOND, STEP
from mest_fed.nn.optimizer_settings import OptimizerSettings
from mest_fed.nn.optimizers import SGD, Adam, AdamW
from mest_fed.nn.slots import scattered
from mest_fed.sparsity import Bounds, MestEM

THEIRS = {Adam: torch.optim.Adam, AdamW: torch.optim.AdamW}
decays = st.sampled_from([0.0, 0.5, 0.9, 0.999])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([Adam, AdamW]),
    st.tuples(st.integers(1, 5), st.integers(1, 3)),
    st.tuples(decays, decays),
    st.sampled_from([0.0, 1e-2]),
)
def test_it_is_torch_s(kind, steps_and_parts, betas, decay):
    nets = TwoHeads(), TwoHeads()
    options = {"betas": betas, "eps": 1e-6, "weight_decay": decay}
    ours = train(nets[0], kind(nets[0].parameters(), 0.1, **options), *steps_and_parts)
    fused = THEIRS[kind](nets[1].parameters(), 0.1, fused=True, **options)
    theirs = train(nets[1], fused, *steps_and_parts)
    for name, tensor in ours.items():
        # Without a first moment torch adds the gradient to a zero: the last bit may differ.
        tolerance = {} if betas[0] else {"rtol": 1e-5, "atol": 1e-6}
        if betas[0]:
            assert torch.equal(tensor, theirs[name]), name
        else:
            torch.testing.assert_close(tensor, theirs[name], **tolerance)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_two_steps_by_hand(kind):
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = kind([weight], 0.5, betas=(0.5, 0.75), eps=1.0, weight_decay=0.25)
    w, m, v = 2.0, 0.0, 0.0
    for number, slope in enumerate((3.0, -1.0), start=1):
        optimizer.zero_grad()
        (weight * slope).sum().backward()
        optimizer.step()
        g = slope + (0.25 * w if kind is Adam else 0)
        w -= 0.5 * 0.25 * w if kind is AdamW else 0
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g * g
        w -= 0.5 * m / (1 - 0.5**number) / ((v / (1 - 0.75**number)) ** 0.5 + 1.0)
        assert weight.item() == pytest.approx(w, rel=1e-12)
    state = optimizer.state[weight]
    assert (state[STEP].item(), state[FIRST].item()) == (2, pytest.approx(m, rel=1e-12))
    assert state[SECOND].item() == pytest.approx(v, rel=1e-12)


class Restricted:
    """A dense model that trains with torch's optimizer on the weights of a mask alone."""

    def __init__(self, sparse, kind, **options):
        self.sparse = sparse
        self.net = small_resnet(norm="group").double().train()
        self.dense = dict(self.net.named_parameters())
        self.follow()
        self.optimizer = kind(self.net.parameters(), **options)

    def masks(self):
        """Return dense name -> which weights are active."""
        return {
            f"{name}.weight": scattered(
                layer.layout, torch.ones(len(layer.slots), layer.layout.width), layer.slots
            ).bool()
            for name, layer in self.sparse.named_modules()
            if isinstance(layer, SparseLayer)
        }

    def follow(self):
        """Take over the sparse model's numbers."""
        sparse = {n: m for n, m in self.sparse.named_modules() if isinstance(m, SparseLayer)}
        given = dict(self.sparse.named_parameters())
        for name, parameter in self.dense.items():
            layer = sparse.get(name.removesuffix(".weight"))
            parameter.data = (given[name].data if layer is None else layer.dense_weight()).clone()

    def step(self, images, labels):
        self.optimizer.zero_grad()
        cross_entropy(self.net(images), labels).backward()
        for name, mask in self.masks().items():
            self.dense[name].grad *= mask
        self.optimizer.step()

    def mutate(self, before):
        """Do by hand what a mutation must do: dropped and grown weights and moments are zero."""
        for name, mask in self.masks().items():
            parameter, kept = self.dense[name], mask & before[name]
            parameter.data *= kept
            for key in (FIRST, SECOND):
                self.optimizer.state[parameter][key] *= kept


@pytest.mark.parametrize("scheme", ["unstructured", "block", "pattern", "channel"])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_on_a_mask_it_is_the_dense_one_and_so_after_a_mutation(kind, scheme):
    sparse = small_resnet(scheme, norm="group").double().train()
    options = {"lr": 0.01, "weight_decay": 1e-3, "eps": 1e-6}
    dense = Restricted(sparse, THEIRS[kind], **options)
    optimizer = kind(sparse.parameters(), 0.01, weight_decay=1e-3, eps=1e-6)
    mutator = Mutator(sparse, MestEM(gradient_weight=0.0), optimizer)
    images, labels = draw(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    for number in range(4):
        optimizer.zero_grad()
        cross_entropy(sparse(images), labels).backward()
        optimizer.step()
        dense.step(images, labels)
        if number == 1:
            before = dense.masks()
            mutator.mutate(Bounds(floor=0.6), lambda name: np.random.default_rng(5))
            dense.mutate(before)
            assert any((mask & ~before[name]).any() for name, mask in dense.masks().items())
    for name, layer in sparse.named_modules():
        if isinstance(layer, SparseLayer):
            expected = dense.dense[f"{name}.weight"]
            torch.testing.assert_close(layer.dense_weight(), expected.data, rtol=1e-7, atol=1e-9)
            for key in (FIRST, SECOND):
                moment = scattered(layer.layout, optimizer.state[layer.values][key], layer.slots)
                theirs = dense.optimizer.state[expected][key]
                torch.testing.assert_close(moment, theirs, rtol=1e-6, atol=1e-12)
            assert optimizer.state[layer.values][STEP].item() == 4


def steps(net, optimizer, *, by_hand=None, count=3):
    """Train some steps in two micro-batches each; ``by_hand`` edits the gradients."""
    for number in range(count):
        optimizer.zero_grad()
        for part in range(2):
            x = draw(4, 1, 8, 8, seed=2 * number + part, dtype=torch.float64)
            cross_entropy(net(x), torch.arange(4) + part).backward()
        if by_hand is not None:
            by_hand(net)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def nets():
    return [small_resnet("block", norm="group").double().train() for _ in range(2)]


def same(ours, expected):
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


BUILT = [
    (OptimizerSettings(0.1, 0.9, 0.0), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    (OptimizerSettings(0.1, 0.0, 0.0), lambda p: torch.optim.SGD(p, 0.1)),
    (OptimizerSettings(0.01, 0.9, 0.0, name="adam"), lambda p: torch.optim.Adam(p, 0.01)),
    (
        OptimizerSettings(0.01, 0.9, 0.1, name="adamw"),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
]


@pytest.mark.parametrize(
    ("made", "theirs", "release_gradients"),
    [(*built, how) for built in BUILT for how in (False, True)[: 1 + built[0].can_release]],
)
def test_the_proximal_term_is_the_hand_written_one(made, theirs, release_gradients):
    ours, plain = nets()
    start = [parameter.detach().clone() for parameter in plain.parameters()]

    def add_term(net):
        for parameter, old in zip(net.parameters(), start, strict=True):
            parameter.grad += 0.3 * (parameter.detach() - old)

    settings = OptimizerSettings(**{**vars(made), "proximal": 0.3})
    built = settings.build(ours, release_gradients=release_gradients)
    without = steps(nets()[0], made.build(nets()[0]))
    got = steps(ours, built)
    same(got, steps(plain, theirs(plain.parameters()), by_hand=add_term))
    assert any(not torch.allclose(got[name], tensor) for name, tensor in without.items())
    built.close()


@pytest.mark.parametrize(("made", "theirs"), BUILT)
def test_clipping_is_torch_s_over_all_parameters(made, theirs):
    ours, plain = nets()

    def clip(net):
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        assert norm > 0.5

    clipped = OptimizerSettings(**{**vars(made), "clip_norm": 0.5})
    same(steps(ours, clipped.build(ours)), steps(plain, theirs(plain.parameters()), by_hand=clip))


def test_the_proximal_reference_of_a_grown_weight_is_zero():
    net = sparsify(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)), "unstructured", 0.5
    )
    optimizer = SGD(net.parameters(), 0.1, proximal=1.0)
    mutator = Mutator(net, MestEM(), optimizer)
    layer = next(m for m in net.modules() if isinstance(m, SparseLayer))
    start = layer.dense_weight()
    net(draw(4, 8)).sum().backward()
    optimizer.step()
    mutator.mutate(Bounds(floor=0.5), lambda name: np.random.default_rng(1))
    reference = scattered(layer.layout, optimizer.state[layer.values][REFERENCE], layer.slots)
    active = scattered(layer.layout, torch.ones_like(layer.values.detach()), layer.slots).bool()
    assert torch.equal(reference[active & (start != 0)], start[active & (start != 0)])
    assert (active & (start == 0)).any()
    assert not reference[start == 0].any()


@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(name="adam"),
        OptimizerSettings(name="adamw"),
        OptimizerSettings(clip_norm=1),
    ],
)
def test_gradients_that_are_needed_whole_are_not_released(settings):
    assert not settings.can_release
    with pytest.raises(InputError, match=r"release_gradients = True is not allowed.*sgd"):
        settings.build(nn.Linear(2, 2), release_gradients=True)


def test_sgd_refuses_to_clip_what_it_releases():
    with pytest.raises(InputError, match="release_gradients = True is not allowed"):
        SGD(nn.Linear(2, 2).parameters(), 0.1, clip_norm=1.0, release_gradients=True)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"training.optimizer = 'lion'.*sgd, adam, adamw"):
        OptimizerSettings(name="lion").build(nn.Linear(2, 2))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_without_momentum_none_is_kept_and_a_constant_gradient_moves_as_far(name):
    made = OptimizerSettings(0.01, weight_decay=0.0, name=name)
    assert made.has_momentum
    assert not made.without_momentum().has_momentum
    moved, kept = [], []
    for each in (made, made.without_momentum()):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        net = nn.Module()
        net.weight = weight
        optimizer = each.build(net)
        for _ in range(400):
            optimizer.zero_grad()
            weight.sum().backward()
            optimizer.step()
        moved.append(weight.item())
        kept.append(set(optimizer.state[weight]))
    assert moved[1] == pytest.approx(moved[0], rel=0.03)
    assert len(kept[1]) == len(kept[0]) - 1
