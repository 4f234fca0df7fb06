"""Recomputation of a segment: its input is kept, packed, and backward runs it again.

Chen et al. 2016 ("Training deep nets with sublinear memory cost", section 3). Sparse forward passes
are cheap, so this costs less than it does a dense network. Here a segment is run again a few images
at a time, so that what it computes within stands in memory for those images alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from mest_fed.errors import MestFedError
from mest_fed.memory.activations.formats import Packed
from mest_fed.memory.activations.pieces import pieces
from mest_fed.memory.activations.segments import Segment


class Recomputed(torch.autograd.Function):
    """A segment whose backward pass runs it again.

    The gradients of its parameters are accumulated from within, by a backward pass of its own;
    ``anchor``, an empty tensor that needs a gradient, is there so that autograd comes here even
    where ``x`` needs none. Gradients are those of the function at the packed input: exact if the
    format is.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, packed: Packed, segment: Segment) -> Tensor:
        """Run the segment, and keep nothing but its packed input."""
        ctx.packed, ctx.segment = packed, segment
        before = torch.get_rng_state()
        y = _run(segment, x)
        ctx.random = None if torch.equal(before, torch.get_rng_state()) else before
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run the segment again, piece by piece, each with its backward pass."""
        packed, segment = ctx.packed, ctx.segment
        dx = grad.new_empty(packed.shape) if ctx.needs_input_grad[1] else None
        with _as_before(segment, ctx.random):
            for first, last in _pieces(segment, _cut_by(ctx, grad)):
                x = packed.images(first, last).detach().requires_grad_(dx is not None)
                with torch.enable_grad():
                    y = segment.function(x)
                    if y.requires_grad:  # else its parameters do not train, and nobody wants dx
                        _go_back(y, grad[first:last])
                if dx is not None:
                    dx[first:last] = 0 if x.grad is None else x.grad
        ctx.packed = None
        return None, dx, None, None


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
    version = x._version
    result: Tensor | None = None
    for first, last in _pieces(segment, x.shape):
        y = segment.function(x[first:last])
        if last - first == len(x):
            result = y
        else:
            result = y.new_empty(len(x), *y.shape[1:]) if result is None else result
            result[first:last] = y
    if x._version != version:
        raise MestFedError(f"{segment.name} changes its input in place; it cannot be recomputed")
    return segment.function(x) if result is None else result  # no image at all


def _cut_by(ctx: Any, grad: Tensor) -> torch.Size:
    """Return the larger of input and output; the input where draws must fall as before."""
    shapes: list[torch.Size] = [ctx.packed.shape, grad.shape]
    return shapes[0] if ctx.random is not None else max(shapes, key=torch.Size.numel)


def _pieces(segment: Segment, shape: torch.Size) -> Iterator[tuple[int, int]]:
    return iter([(0, shape[0])]) if segment.mixes_images() else pieces(shape)


@contextmanager
def _as_before(segment: Segment, random: Tensor | None) -> Iterator[None]:
    """Draw what was drawn before, and leave running statistics as they are."""
    buffers = [buffer for module in segment.modules() for buffer in module.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers] if segment.mixes_images() else []
    with ExitStack() as stack:
        if random is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.set_rng_state(random)
        yield
    for buffer, before in zip(buffers, kept, strict=False):
        buffer.copy_(before)
