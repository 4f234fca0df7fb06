"""A model tried out with a few inputs: what is wrong with a user's own is said in one line."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mest_fed.described import described, kind_of
from mest_fed.errors import InputError
from mest_fed.rng import seeded_globals


def try_out(
    model: nn.Module, inputs: Tensor, key: str, output_shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """Compute the outputs for a few inputs, such as zeros.

    Parameters
    ----------
    model : nn.Module
        Such as its shell.
    inputs : Tensor
        Of the data's shape and type.
    key : str
        What to call the model in a refusal, such as ``model.name = 'resnet8'``.
    output_shapes : sequence of tuple of int
        What one output may be; empty: anything.

    Raises
    ------
    InputError
        If it or its backward pass cannot, or what it gives is no tensor of an allowed shape
        with a gradient.
    """
    given = f"inputs of shape {_of_any(inputs.shape)} and {inputs.dtype}"
    output = _called(model, inputs, key, given)
    if not isinstance(output, Tensor):
        raise InputError(f"{key} gives {kind_of(output)}; allowed: a tensor")
    count, shape = output.shape[:1], tuple(output.shape[1:])
    if count != inputs.shape[:1]:
        raise InputError(
            f"{key} gives shape {tuple(output.shape)} for n = {len(inputs)} {given}; allowed: "
            "(n, ...)"
        )
    if output_shapes and shape not in output_shapes:
        allowed = " or ".join(_of_any((len(inputs), *each)) for each in output_shapes)
        raise InputError(
            f"{key} gives shape {_of_any(output.shape)} for {given}; allowed: {allowed}, by "
            "data.name and task.name"
        )
    if not output.is_floating_point():
        raise InputError(f"{key} gives {output.dtype}; allowed: floating-point numbers")
    if not output.requires_grad:
        raise InputError(
            f"{key} gives an output without a gradient; allowed: one that depends on a "
            "parameter with requires_grad"
        )
    _try_backward(model, output, key)
    return output.detach()


def _called(model: nn.Module, inputs: Tensor, key: str, given: str) -> object:
    """Return what a model in evaluation mode gives; its layers' modes stay what they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad(), seeded_globals(0):
            output: object = model(inputs)
    except Exception as error:  # a model of a user's own may raise anything
        raise InputError(
            f"{key} does not take {given}, which data.name gives: {described(error)}"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return output


def _try_backward(model: nn.Module, output: Tensor, key: str) -> None:
    """Refuse a model whose backward pass raises; no gradient stays."""
    trained = [it for it in model.parameters() if it.requires_grad]
    try:
        with seeded_globals(0):
            torch.autograd.grad(output.sum(), trained, allow_unused=True)
    except Exception as error:
        raise InputError(
            f"{key} cannot be trained, its backward pass raises: {described(error)}"
        ) from error


def _of_any(shape: Sequence[int]) -> str:
    """Write a shape whose first dimension is that of the examples."""
    rest = ", ".join(map(str, shape[1:]))
    return f"(n, {rest})" if rest else "(n,)"
