"""Recomputation of a segment that keeps images apart: backward runs it a few images at a time.

Chen et al. 2016 ("Training deep nets with sublinear memory cost", section 3). Sparse forward passes
are cheap, so this costs less than it does a dense network. What the segment computes within stands
in memory for a few images alone. :mod:`mest_fed.memory.activations.rows` says which segments may
be cut so; the others go by :mod:`mest_fed.memory.activations.whole`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mest_fed.errors import MestFedError
from mest_fed.memory.activations.micro_chunks import Workspace, micro_chunks
from mest_fed.memory.activations.saved_tensors import AsIs, Packed
from mest_fed.memory.activations.segments import Segment
from mest_fed.memory.activations.state import Autocast, replaced


def by_function(
    function: Any, segment: Segment, x: Tensor, packed: Packed, work: Workspace
) -> Tensor:
    """Compute a segment by an autograd function that keeps its packed input and its parameters.

    It takes x, the packed x, the segment, a workspace, and the segment's parameters.
    The parameters are arguments, so that autograd alone decides where their gradients go.
    """
    # What a function keeps is packed already: hooks around the model shall not pack it again.
    with saved_tensors_hooks(AsIs, AsIs.whole):
        y: Tensor = function.apply(x, packed, segment, work, *segment.parameters())
    return y


def keep(ctx: Any, packed: Packed, parameters: tuple[Tensor, ...]) -> None:
    """Have autograd keep what backward needs: until then, or longer if it retains the graph."""
    ctx.save_for_backward(*packed.parts, *parameters)
    ctx.packed, ctx.parts = packed.made_of(), len(packed.parts)
    ctx.parameters = parameters


def kept(ctx: Any, segment: Segment) -> tuple[Packed, tuple[Tensor, ...]]:
    """Return what was kept: the packed input and the parameters.

    Raises
    ------
    MestFedError
        If gradients of gradients are to be taken, or what was kept is not what it was.
    """
    if torch.is_grad_enabled():
        raise MestFedError(
            f"segment {segment.name} is recomputed in micro_chunks, which gives no gradient of a "
            "gradient (create_graph=True); allowed: recompute = none or norms"
        )
    parts, parameters = ctx.saved_tensors[: ctx.parts], ctx.saved_tensors[ctx.parts :]
    for then, now in zip(parameters, ctx.parameters, strict=True):
        if then.data_ptr() != now.data_ptr():  # as a mutation does it
            raise replaced(segment.name)
    return ctx.packed.made_of(*parts), parameters


class RecomputedInChunks(torch.autograd.Function):
    """A segment whose backward pass runs it again, chunk by chunk, each with a backward pass.

    Gradients are those of the function at the packed input: exact if the format is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Packed,
        segment: Segment,
        work: Workspace,
        *parameters: Tensor,
    ) -> Tensor:
        """Run the segment, and keep nothing but its packed input."""
        keep(ctx, packed, parameters)
        ctx.segment, ctx.places, ctx.autocast = segment, _places(segment), Autocast(x.device)
        return _run(segment, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run the segment again, with stand-ins for its parameters that gather their gradients."""
        segment = ctx.segment
        packed, parameters = kept(ctx, segment)
        wanted, _, _, _, *trains = ctx.needs_input_grad
        stand_ins = [
            parameter.detach().requires_grad_(needs)
            for parameter, needs in zip(parameters, trains, strict=True)
        ]
        dx = grad.new_empty(packed.shape, dtype=packed.dtype) if wanted else None
        larger = max(packed.shape, grad.shape, key=torch.Size.numel)
        with _in_place_of(ctx.places, stand_ins), ctx.autocast.again(), torch.enable_grad():
            for first, last in micro_chunks(larger):
                x = packed.images(first, last).detach().requires_grad_(wanted)
                _go_back(segment.function(x), grad[first:last])
                if dx is not None and x.grad is not None:
                    dx[first:last] = x.grad
        return dx, None, None, None, *(stand_in.grad for stand_in in stand_ins)


#: Where each of a segment's parameters stands: module, name and the parameter's number.
_Places = list[tuple[nn.Module, str, int]]


def _places(segment: Segment) -> _Places:
    number = {id(parameter): i for i, parameter in enumerate(segment.parameters())}
    return [(module, name, number[id(p)]) for (module, name), p in segment.weights().items()]


@contextmanager
def _in_place_of(places: _Places, stand_ins: list[Tensor]) -> Iterator[None]:
    """Have modules compute with other tensors than their parameters."""
    found = [module._parameters[name] for module, name, _ in places]
    tables: list[dict[str, Any]] = [module._parameters for module, _, _ in places]
    for table, (_, name, number) in zip(tables, places, strict=True):
        table[name] = stand_ins[number]
    try:
        yield
    finally:
        for table, (_, name, _), parameter in zip(tables, places, found, strict=True):
            table[name] = parameter


class _Seed(torch.autograd.Function):
    """A scalar whose backward pass hands a given gradient to ``y``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:
        return ctx.grad, None


def _go_back(y: Tensor, grad: Tensor) -> None:
    """Do ``torch.autograd.backward(y, grad)``, which would import sympy: 36 MB (torch 2.13)."""
    _Seed.apply(y, grad).backward()  # type: ignore[no-untyped-call]


def _run(segment: Segment, x: Tensor) -> Tensor:
    result: Tensor | None = None
    for first, last in micro_chunks(x.shape):
        y: Tensor = segment.function(x[first:last])
        if last - first == len(x):
            return y.data  # no view of anything: what follows may change it in place
        result = y.new_empty(len(x), *y.shape[1:]) if result is None else result
        result[first:last] = y
    assert result is not None
    return result
