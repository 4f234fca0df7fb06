"""Sparse layers in float32, so with compiled kernels, through mutations: whole numbers, exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mest_fed.kernels import native
from mest_fed.nn import SparseConv2d, SparseLinear
from mest_fed.nn.slots import gathered
from mest_fed.sparsity import Mask, layout_for
from mest_fed.sparsity.schemes import SCHEMES

ALL_SCHEMES = (*SCHEMES, "block:1", "block:3", "block:16")


def whole(*shape, seed=0):
    """Draw small integers, of which float32 holds every sum here."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float()


def mask_of(layout, share, seed):
    """Draw a mask: some granules, one variant of each."""
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(share * layout.num_granules))
    granules = torch.randperm(layout.num_granules, generator=generator)[:count]
    variants = torch.randint(layout.variants, (count,), generator=generator)
    return Mask.of(layout, (granules * layout.variants + variants).numpy())


def sparse_of(plain, scheme, share, seed=0):
    """Return the sparse layer of a plain one whose parameters are whole numbers."""
    for i, parameter in enumerate(plain.parameters()):
        parameter.data = whole(*parameter.shape, seed=seed + i)
    layout = layout_for(scheme, tuple(plain.weight.shape))
    kind = SparseConv2d if isinstance(plain, nn.Conv2d) else SparseLinear
    return kind(layout, mask_of(layout, share, seed), plain)


def dense_gradients(layer, x, upstream):
    """Return y, dx, dweight and dbias of the dense product in float64."""
    plain = layer.to_dense().double()
    x = x.double().requires_grad_()
    y = plain(x)
    leaves = [x, plain.weight, *([] if plain.bias is None else [plain.bias])]
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.double())]


def check(layer, x, seed=0):
    """Compare output and all gradients with the dense layer's; exactly."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    upstream = whole(*y.shape, seed=seed + 7)
    y.backward(upstream)
    expected, dx, dweight, *dbias = dense_gradients(layer, x.detach(), upstream)
    assert torch.equal(y.detach().double(), expected)
    assert torch.equal(x.grad.double(), dx)
    assert torch.equal(layer.values.grad.double(), gathered(layer.layout, dweight, layer.slots))
    for gradient in dbias:
        assert torch.equal(layer.bias.grad.double(), gradient)


def conv(bias=True, stride=1, padding=1):
    return nn.utils.skip_init(nn.Conv2d, 6, 10, 3, stride=stride, padding=padding, bias=bias)


def linear(bias=True):
    return nn.utils.skip_init(nn.Linear, 30, 22, bias=bias)


@pytest.mark.skipif(not native.available(), reason="no compiled kernels")
@pytest.mark.parametrize("scheme", ALL_SCHEMES)
def test_sparse_layers_run_compiled_kernels(scheme):
    for plain, x in ((conv(), whole(2, 6, 5, 5)), (linear(), whole(3, 30))):
        layer = sparse_of(plain, scheme, 0.1)
        check(layer, x)
        name = "channels" if scheme == "channel" else native.PLANES[0]
        assert set(layer.choice) == {name}


shares = st.lists(st.sampled_from((0.0, 0.05, 0.2, 0.3, 0.6, 1.0)), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALL_SCHEMES), shares, st.integers(0, 99), st.booleans(), st.integers(1, 2))
def test_any_sequence_of_mutations_leaves_a_right_convolution(scheme, shares, seed, bias, stride):
    layer = sparse_of(conv(bias, stride, seed % 4), scheme, shares[0], seed)
    mutate_and_check(layer, shares, seed, whole(1 + seed % 3, 6, 7, 3 + seed % 20, seed=seed))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ALL_SCHEMES), shares, st.integers(0, 99), st.booleans(), st.integers(0, 20))
def test_any_sequence_of_mutations_leaves_a_right_linear_map(scheme, shares, seed, bias, batch):
    layer = sparse_of(linear(bias), scheme, shares[0], seed)
    mutate_and_check(layer, shares, seed, whole(batch, 30, seed=seed))


def mutate_and_check(layer, shares, seed, x):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.5)
    for step, share in enumerate(shares):
        check(layer, x, seed + step)
        optimizer.step()
        layer.replace_mask(mask_of(layer.layout, share, seed + step + 1), optimizer)
        assert optimizer.state[layer.values]["momentum_buffer"].shape == layer.values.shape
        # Grown values start at zero: give all of them other numbers, padding left out.
        fresh = whole(*layer.layout.shape, seed=seed + step)
        layer.values.data = gathered(layer.layout, fresh, layer.slots)
    check(layer, x, seed)


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@pytest.mark.parametrize(("plain", "size"), [(conv, (6, 6, 5, 17)), (linear, (6, 30))])
def test_micro_batches_add_up(scheme, plain, size):
    layer, x = sparse_of(plain(), scheme, 0.15), whole(*size)
    upstream = whole(*layer(x).shape, seed=3)
    layer(x).backward(upstream)
    together = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        layer(x[part]).backward(upstream[part])
    for a, b in zip(layer.parameters(), together, strict=True):
        assert torch.equal(a.grad, b)


@pytest.mark.parametrize("scheme", ALL_SCHEMES)
@pytest.mark.parametrize(("plain", "size"), [(conv, (3, 6, 5, 17)), (linear, (3, 30))])
def test_the_dense_gradient_is_the_true_one_and_then_no_longer_made(scheme, plain, size):
    layer, x = sparse_of(plain(), scheme, 0.15), whole(*size)
    layer.keep_dense_gradient = True
    y = layer(x)
    upstream = whole(*y.shape, seed=3)
    y.backward(upstream)
    dweight = dense_gradients(layer, x, upstream)[2]
    assert torch.equal(layer.dense_gradient.double(), dweight)
    assert torch.equal(layer.values.grad.double(), gathered(layer.layout, dweight, layer.slots))
    layer.keep_dense_gradient, layer.dense_gradient = False, None
    check(layer, x)
    assert layer.dense_gradient is None


def test_a_graph_keeps_the_mask_of_its_forward_pass():
    layer, x = sparse_of(conv(), "block", 0.1), whole(2, 6, 5, 5).requires_grad_()
    y = layer(x)
    upstream = whole(*y.shape, seed=3)
    dx = dense_gradients(layer, x.detach(), upstream)[1]
    layer.slots = torch.from_numpy(mask_of(layer.layout, 0.1, 9).slots)
    y.backward(upstream)
    assert torch.equal(x.grad.double(), dx)
