"""ReLU and pooling in one: the bits of torch's two layers."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d, relu

from mest_fed.nn.pooling import ReLUMaxPool2d


def both(x, grad, pool):
    leaf = x.clone().requires_grad_()
    y = pool(leaf * 1)  # the pooling overwrites its input, which may be no leaf
    y.backward(grad)
    return y.detach(), leaf.grad


def test_a_gradient_goes_where_the_maximum_stood():
    x = torch.tensor([[[[1.0, 4.0, -1.0, -2.0], [3.0, 2.0, -3.0, -4.0]]]])
    y, given = both(x, torch.tensor([[[[5.0, 7.0]]]]), ReLUMaxPool2d())
    assert y.tolist() == [[[[4.0, 0.0]]]]
    assert given.tolist() == [[[[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    st.integers(0, 1000),
)
def test_it_is_what_torch_computes(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    grad = torch.randn(max_pool2d(x, 2).shape, generator=generator)
    expected = both(x, grad, lambda z: max_pool2d(relu(z), 2))
    for mine, other in zip(both(x, grad, ReLUMaxPool2d()), expected, strict=True):
        assert torch.equal(mine, other)
    with torch.no_grad():
        assert torch.equal(ReLUMaxPool2d()(x.clone()), expected[0])
