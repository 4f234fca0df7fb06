"""Sparse layers against the dense ones they stand for: 1-D and 1x1 convolutions, projections."""

import pytest
import torch
from nn_cases import SCHEMES, draw, seeded
from torch import nn

from mest_fed.kernels import native
from mest_fed.nn import SparseConv1d, SparseConv2d, SparseLinear, sparsify, to_dense
from mest_fed.nn.slots import gathered

LAYERS = {
    "1x1": (nn.Conv2d(6, 8, 1), (6, 5, 4)),
    "1x1, stride 2, no bias": (nn.Conv2d(6, 8, 1, stride=2, bias=False), (6, 5, 4)),
    "1x1, padded": (nn.Conv2d(6, 8, 1, padding=1), (6, 3, 4)),
    "1x1 on one pixel": (nn.Conv2d(6, 8, 1), (6, 1, 1)),
    "1-D": (nn.Conv1d(6, 8, 3), (6, 9)),
    "1-D, padded, stride 2, no bias": (
        nn.Conv1d(6, 8, 5, stride=2, padding=2, bias=False),
        (6, 9),
    ),
    "1-D, dilated": (nn.Conv1d(6, 8, 3, dilation=3, padding=1), (6, 11)),
    "1-D, 1 tap": (nn.Conv1d(6, 8, 1), (6, 7)),
    "1-D, as long as its input": (nn.Conv1d(6, 8, 4), (6, 4)),
    "linear on a sequence": (nn.Linear(6, 8), (3, 5, 6)),
}
KINDS = {nn.Conv1d: SparseConv1d, nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}


def sparse_and_dense(layer, scheme, dtype):
    """Return the layer between two others, sparse, and the same model made of torch's layers."""
    kind = type(layer)
    ends = {nn.Linear: nn.Linear(8, 2)}.get(kind) or kind(8, 2, 1)
    start = nn.Identity() if kind is nn.Linear else kind(6, 6, 1)
    model = seeded(nn.Sequential(start, layer, ends)).to(dtype)
    sparsify(model, scheme, 0.3)
    assert type(model[1]) is KINDS[kind]
    return model[1], to_dense(model)[1]


def step(layer, x):
    """Return output, gradient of the input, and those of the parameters by name."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y, x.grad, {name: it.grad for name, it in layer.named_parameters()}


@pytest.mark.parametrize("batch", [(), (3,)], ids=["unbatched", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_the_dense_layer(name, scheme, dtype, batch):
    layer, shape = LAYERS[name]
    sparse, dense = sparse_and_dense(layer.__class__(**_options(layer)), scheme, dtype)
    x = draw(*batch, *shape, dtype=dtype)
    ours, theirs = step(sparse, x), step(dense, x)
    close = {} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(ours[:2], theirs[:2], **close)
    assert ours[0].shape == theirs[0].shape
    values = gathered(sparse.layout, theirs[2]["weight"], sparse.slots)
    torch.testing.assert_close(ours[2]["values"], values, **close)
    if dense.bias is not None:
        torch.testing.assert_close(ours[2]["bias"], theirs[2]["bias"], **close)


def _options(layer):
    """Return what makes another layer of the same kind."""
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


@pytest.mark.skipif(not native.available(), reason="no compiled kernels")
@pytest.mark.parametrize("name", ["1x1", "1-D", "linear on a sequence"])
def test_the_compiled_kernels_compute_them(name):
    layer, shape = LAYERS[name]
    sparse, _ = sparse_and_dense(layer.__class__(**_options(layer)), "block", torch.float32)
    sparse(draw(2, *shape))
    assert set(sparse.choice) <= set(native.PLANES)


@pytest.mark.parametrize("name", ["1x1", "1-D", "linear on a sequence"])
def test_a_dense_gradient_has_the_shape_of_the_weight(name):
    layer, shape = LAYERS[name]
    sparse, dense = sparse_and_dense(
        layer.__class__(**_options(layer)), "unstructured", torch.float64
    )
    sparse.keep_dense_gradient = True
    step(sparse, draw(2, *shape, dtype=torch.float64))
    expected = step(dense, draw(2, *shape, dtype=torch.float64))[2]["weight"]
    torch.testing.assert_close(sparse.dense_gradient, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_the_dense_layer_refuses_is_refused(name):
    layer, shape = LAYERS[name]
    sparse, dense = sparse_and_dense(layer.__class__(**_options(layer)), "block", torch.float32)
    channels_first = not isinstance(layer, nn.Linear)
    wrong = (shape[0] + 1, *shape[1:]) if channels_first else (*shape[:-1], shape[-1] + 1)
    for size in (wrong, (2, *wrong), (2, 2, *shape) if channels_first else wrong, shape[-1:]):
        if not channels_first and size == shape[-1:]:
            continue
        x = draw(*size)
        for each in (sparse, dense):
            with pytest.raises((RuntimeError, ValueError)):
                each(x)
