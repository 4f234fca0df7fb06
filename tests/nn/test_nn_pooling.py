"""ReLU and pooling in one: the bits of torch's two layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d, relu

from mest_fed.kernels import native
from mest_fed.nn.dense import ReLUMaxPool2d

compiled = pytest.mark.skipif(not native.available(), reason="no compiled kernels")


def both(x, grad, pool):
    leaf = x.clone().requires_grad_()
    y = pool(leaf)
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
        assert torch.equal(ReLUMaxPool2d()(x), expected[0])


@compiled
def test_the_fused_layer_keeps_a_byte_an_output():
    x = torch.randn(2, 3, 9, 7).requires_grad_()
    y = ReLUMaxPool2d()(x)
    kept = y.grad_fn.saved_tensors
    assert sum(tensor.nbytes for tensor in kept) == y.numel()


@compiled
def test_its_operators_have_fake_kernels_that_agree_with_the_real_ones():
    x, where = torch.randn(2, 3, 9, 7), torch.zeros(2, 3, 4, 3, dtype=torch.uint8)
    dz = torch.randn(2, 3, 4, 3)
    operators = torch.ops.mest_fed
    for keep in (True, False):
        torch.library.opcheck(operators.relu_pool, (x, keep))
    torch.library.opcheck(operators.relu_pool_backward, (dz, where, [2, 3, 9, 7]))


@compiled
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("relu_pool", (torch.zeros(2, 3, 1, 4), True)),
        ("relu_pool", (torch.zeros(3, 4, 4), True)),
        ("relu_pool", (torch.zeros(1, 1, 4, 4, dtype=torch.float64), True)),
        ("relu_pool_backward", (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), [1, 1, 4, 4])),
        (
            "relu_pool_backward",
            (torch.zeros(1, 1, 2, 2), torch.zeros(4, dtype=torch.uint8), [1, 1, 4, 4]),
        ),
        (
            "relu_pool_backward",
            (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [1, 1, 6, 4]),
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments):
    with pytest.raises(ValueError, match=r"must be|no windows"):
        getattr(torch.ops.mest_fed, name)(*arguments)
