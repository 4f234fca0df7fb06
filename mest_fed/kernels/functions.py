"""The autograd function of sparse layers. What it saves is the input and the values alone."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mest_fed.kernels import channels, ops, reference  # noqa: F401 - ops registers operators
from mest_fed.kernels.choice import CHANNELS, DENSE, EVERYTHING_DENSE, Choice
from mest_fed.kernels.native import OPERATORS, PLANES
from mest_fed.kernels.storage import Kernels, Strips
from mest_fed.kernels.weight import ConvGeometry, SparseWeight


class How(NamedTuple):
    """How a product is computed."""

    geometry: ConvGeometry
    choice: Choice


class SparseProduct(torch.autograd.Function):
    """Convolution of (n, in, h, w), or linear map of (n, in), with compact weight values."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd's own ctx counts
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: SparseWeight,
        how: How,
    ) -> Tensor:
        """Multiply ``x`` by a weight of shape (out, in, kh, kw) or (out, in)."""
        ctx.save_for_backward(x, values)
        ctx.weight, ctx.how = weight, how
        return forward(x, values, bias, weight, how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, of the active values and of the bias.

        Under ``create_graph`` they are computed with a dense weight, by operators that have
        gradients themselves.
        """
        x, values = ctx.saved_tensors
        weight, how, wanted = ctx.weight, ctx.how, ctx.needs_input_grad
        if torch.is_grad_enabled():
            how = how._replace(choice=EVERYTHING_DENSE)
        with torch._C.DisableTorchFunctionSubclass():  # values may be of a subclass
            dx, dvalues = backward(grad, x, values, weight, how, wanted=(wanted[0], wanted[1]))
        planes = tuple(range(2, grad.dim()))
        return (
            dx,
            dvalues,
            grad.sum((0, *planes)) if wanted[2] else None,
            None,
            None,
        )


def backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    weight: SparseWeight,
    how: How,
    *,
    wanted: tuple[bool, bool] = (True, True),
    into: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``x`` and of the active values, each if it is wanted.

    That of ``x`` stands in ``into`` if that is given.
    """
    if into is not None and wanted[0]:
        if all(wanted) and _at_once(weight, how):
            given = (into, grad, x, values, *_granules(weight), _numbers(how.geometry))
            plane = _plane(how.choice.backward_input)
            return into, OPERATORS.conv2d_backward_into(*given, plane)
        dx, dvalues = backward(grad, x, values, weight, how, wanted=wanted)
        assert dx is not None
        return into.copy_(dx), dvalues
    if all(wanted) and _at_once(weight, how):
        plane, numbers = _plane(how.choice.backward_input), _numbers(how.geometry)
        dx, dvalues = OPERATORS.conv2d_backward(grad, x, values, *_granules(weight), numbers, plane)
        return dx, dvalues
    return (
        backward_input(grad, x, values, weight, how) if wanted[0] else None,
        backward_values(grad, x, values, weight, how) if wanted[1] else None,
    )


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    weight: SparseWeight,
    how: How,
    *,
    into: Tensor | None = None,
) -> Tensor:
    """Multiply ``x`` by the weight with the chosen implementation, ``into`` what is given."""
    name = how.choice.forward
    if into is not None:
        if name in PLANES:
            given = (into, x, values, bias, *_granules(weight), _numbers(how.geometry))
            OPERATORS.conv2d_into(*given, _plane(name))
            return into
        return into.copy_(forward(x, values, bias, weight, how))
    if name == DENSE:
        return reference.forward(x, values, bias, weight, how.geometry)
    if name == CHANNELS:
        return channels.forward(x, values, bias, weight, how.geometry)
    numbers = _numbers(how.geometry)
    y: Tensor = OPERATORS.conv2d(x, values, bias, *_granules(weight), numbers, _plane(name))
    return y


def backward_input(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, how: How
) -> Tensor:
    """Return the gradient of ``x`` with the chosen implementation."""
    name = how.choice.backward_input
    if name == DENSE:
        return reference.backward_input(grad, x, values, weight, how.geometry)
    if name == CHANNELS:
        return channels.backward_input(grad, x, values, weight, how.geometry)
    size, numbers = list(x.shape), _numbers(how.geometry)
    dx: Tensor = OPERATORS.conv2d_input(
        grad, values, *_granules(weight), numbers, size, _plane(name)
    )
    return dx


def backward_values(
    grad: Tensor, x: Tensor, values: Tensor, weight: SparseWeight, how: How
) -> Tensor:
    """Return the gradient of the active values with the chosen implementation."""
    name = how.choice.backward_values
    # Where someone wants the dense gradient (RigL), it has to be made.
    if name == DENSE or weight.on_dense_gradient is not None:
        return reference.backward_values(grad, x, values, weight, how.geometry)
    if name == CHANNELS:
        return channels.backward_values(grad, x, values, weight, how.geometry)
    numbers = _numbers(how.geometry)
    gradient: Tensor = OPERATORS.conv2d_values(grad, x, *_granules(weight), numbers, _plane(name))
    return gradient


def _at_once(weight: SparseWeight, how: How) -> bool:
    """Whether one compiled kernel gives both gradients."""
    name = how.choice.backward_input
    same = name == how.choice.backward_values and name in PLANES
    return same and weight.on_dense_gradient is None


def _plane(name: str) -> int:
    return PLANES.index(name)


def _numbers(geometry: ConvGeometry) -> list[int]:
    return [*geometry.stride, *geometry.padding, *geometry.dilation]


def _granules(weight: SparseWeight) -> tuple[Tensor, Tensor | None, int, list[int]]:
    """Return slots, cells, rows and shape, as the operators take them."""
    shape = list((*weight.shape, 1, 1)[:4])
    if isinstance(weight.storage, Strips):
        return weight.slots, None, weight.storage.rows, shape
    if isinstance(weight.storage, Kernels):
        return weight.slots, _cells(weight), 1, shape
    raise TypeError(f"{weight.storage} has no compiled kernel")


def _cells(weight: SparseWeight) -> Tensor:
    assert isinstance(weight.storage, Kernels)
    return torch.tensor(weight.storage.cells, dtype=torch.int32, device=weight.slots.device)
