"""Sparse layers against the dense product in float64, and what they store and save."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn_cases import SCHEMES, chain, draw, generator, seeded, train_step
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.nn import SparseConv2d, SparseLinear, sparsify
from mest_fed.nn.slots import gathered
from mest_fed.sparsity import layout_for, magnitude_mask

LINEAR_SCHEMES = ("unstructured", "block", "block:3", "channel")


def sparse_of(plain, scheme, share):
    """Return the sparse layer that keeps a share of the granules of a plain one."""
    layout = layout_for(scheme, tuple(plain.weight.shape))
    count = max(1, round(share * layout.num_granules))
    mask = magnitude_mask(layout, plain.weight.detach().numpy(), count)
    kind = SparseConv2d if isinstance(plain, nn.Conv2d) else SparseLinear
    return kind(layout, mask, plain)


def check_against_dense(layer, plain, x, product):
    """Compare output and all gradients with ``product(x, weight, bias)`` on the masked weight."""
    weight = layer.dense_weight()
    active = weight != 0
    assert torch.equal(weight, plain.weight.detach() * active)
    assert int(active.sum()) == layer.layout.active_weights(layer.slots)
    weight.requires_grad_()
    bias = None if plain.bias is None else plain.bias.detach().clone().requires_grad_()
    other = x.clone().requires_grad_()
    expected = product(other, weight, bias)
    upstream = draw(*expected.shape, seed=9, dtype=x.dtype)
    expected.backward(upstream)

    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(upstream)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.values.grad, gathered(layer.layout, weight.grad, layer.slots))
    if bias is not None:
        torch.testing.assert_close(layer.bias.grad, bias.grad)


@st.composite
def convolutions(draw_from):
    """Draw a scheme, a plain convolution and an input's shape."""
    scheme = draw_from(st.sampled_from(SCHEMES))
    small = st.integers(1, 3)
    kernel = (3, 3) if scheme == "pattern" else draw_from(st.tuples(small, small))
    stride = draw_from(st.tuples(small, small))
    padding = draw_from(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    dilation = draw_from(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    channels = (draw_from(st.integers(1, 4)), draw_from(st.integers(1, 9)))
    sides = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw_from(st.integers(0, 5))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    conv = nn.utils.skip_init(
        nn.Conv2d, *channels, kernel, stride, padding, dilation, bias=draw_from(st.booleans())
    )
    return scheme, conv, (draw_from(st.integers(0, 3)), channels[0], *sides)


@settings(deadline=None, max_examples=120)
@given(convolutions(), st.floats(0, 1), st.integers(0, 99))
def test_convolution_is_the_dense_one_on_the_masked_weight(case, share, seed):
    scheme, conv, shape = case
    seeded(conv.double(), seed)
    sides = (conv.stride, conv.padding, conv.dilation)
    check_against_dense(
        sparse_of(conv, scheme, share),
        conv,
        draw(*shape, seed=seed, dtype=torch.float64),
        lambda x, weight, bias: nn.functional.conv2d(x, weight, bias, *sides),
    )


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(LINEAR_SCHEMES),
    st.lists(st.integers(0, 4), max_size=2),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.booleans(),
    st.floats(0, 1),
)
def test_linear_is_the_dense_one_on_the_masked_weight(scheme, batch, sides, bias, share):
    linear = seeded(nn.utils.skip_init(nn.Linear, *sides, bias=bias).double())
    x = draw(*batch, sides[0], dtype=torch.float64)
    check_against_dense(sparse_of(linear, scheme, share), linear, x, nn.functional.linear)


def watched(layer, x):
    """Return a layer's output and what autograd saves for it."""
    saved = []

    def pack(tensor):
        saved.append(tensor.detach())
        return saved[-1]

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        return layer(x), saved


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_autograd_saves_is_the_input_and_the_values(scheme):
    conv = seeded(nn.utils.skip_init(nn.Conv2d, 8, 12, 3, padding=1))
    layer = sparse_of(conv, scheme, 0.2)
    x = draw(2, 8, 5, 5).requires_grad_()
    y, saved = watched(layer, x)
    assert sum(t.untyped_storage().nbytes() for t in saved) == 4 * (
        x.numel() + layer.values.numel()
    )
    assert {t.shape for t in saved} == {x.shape, layer.values.shape}
    y.sum().backward()
    assert layer.values.grad.shape == layer.values.shape


def test_what_autograd_saves_of_a_linear_layer():
    layer = sparse_of(seeded(nn.utils.skip_init(nn.Linear, 30, 20)), "block", 0.1)
    x = draw(3, 30)
    _, saved = watched(layer, x)
    assert sorted(t.untyped_storage().nbytes() for t in saved) == [4 * 15 * 4, 4 * 3 * 30]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_gradients_and_momentum_are_compact(scheme):
    model = sparsify(chain(), scheme, 0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, optimizer, draw(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))
    layer = model[2]
    active = layer.layout.count_for(0.2)
    kept = (layer.values, layer.values.grad, optimizer.state[layer.values]["momentum_buffer"])
    for tensor in kept:
        assert tensor.shape == (active, layer.layout.width)
        assert tensor.untyped_storage().nbytes() == 4 * active * layer.layout.width
    assert layer.slots.untyped_storage().nbytes() == 4 * active
    largest = max(t.numel() for t in model.state_dict().values() if t.dim() == 4)
    assert largest == 6 * 1 * 3 * 3  # the stem's: no dense weight of the sparse layer is kept


def test_padding_values_of_an_incomplete_block_stay_zero():
    model = sparsify(chain(), "block", 1.0)  # 10 output channels: the last strips have 2 rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        train_step(model, optimizer, draw(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))
    layer = model[2]
    padding = layer.layout.positions(layer.slots) == layer.layout.num_weights
    assert int(padding.sum()) == 2 * 54
    assert not layer.values[padding].any()
    assert layer.values[~padding].all()


def test_frozen_values_get_no_gradient_and_the_input_still_does():
    conv = seeded(nn.utils.skip_init(nn.Conv2d, 2, 4, 3).double())
    layer = sparse_of(conv, "block", 0.5)
    layer.values.requires_grad_(False)
    x = draw(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    layer(x).sum().backward()
    assert layer.values.grad is None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_dense_gradient_is_that_of_the_masked_weight_and_micro_batches_add_up(scheme):
    conv = seeded(nn.utils.skip_init(nn.Conv2d, 3, 4, 3, stride=2, padding=1).double())
    layer = sparse_of(conv, scheme, 0.3)
    layer.keep_dense_gradient = True
    x = draw(4, 3, 5, 5, dtype=torch.float64)
    for part in (x[:1], x[1:]):
        layer(part).square().sum().backward()
    weight = layer.dense_weight().requires_grad_()
    y = nn.functional.conv2d(x, weight, conv.bias, stride=2, padding=1)
    y.square().sum().backward()
    torch.testing.assert_close(layer.dense_gradient, weight.grad)
    assert int((layer.dense_gradient != 0).sum()) > layer.values.numel()  # inactive weights as well


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_convolution_on_cuda_is_that_on_the_cpu(scheme):
    conv = seeded(nn.utils.skip_init(nn.Conv2d, 3, 8, 3, padding=1).double())
    layer = sparse_of(conv, scheme, 0.3)
    x = torch.randn(2, 3, 6, 6, generator=generator(), dtype=torch.float64)
    expected = layer(x)
    expected.sum().backward()
    gradient = layer.values.grad.clone()
    layer.values.grad = None
    layer.to("cuda")
    y = layer(x.cuda())
    y.sum().backward()
    torch.testing.assert_close(y.cpu(), expected)
    torch.testing.assert_close(layer.values.grad.cpu(), gradient)
