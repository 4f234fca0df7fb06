"""A residual block with batch normalisation, recomputed in three walks over its images.

Batch statistics tie the images of a batch together, so that such a block cannot go backward image
by image. But all that ties them is two sums a channel. So backward walks over the images a chunk at
a time: once up to the sums of the second normalisation, once up to those of the first, once to the
end. One activation of the whole batch stands beside the incoming gradient, and a byte an element;
autograd's own order would hold eight. The first convolution is computed in each walk: sparse, it
costs less time than its result would cost memory.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.memory.activations.batch_norm_backward import (
    Gradients,
    NormBackward,
    convolve,
    convolve_back,
    convolves_by_hand,
)
from mest_fed.memory.activations.micro_chunks import Workspace, micro_chunks
from mest_fed.memory.activations.recompute import keep, kept
from mest_fed.memory.activations.rows import is_plain
from mest_fed.memory.activations.saved_tensors import Packed
from mest_fed.memory.activations.segments import Segment
from mest_fed.memory.activations.state import Autocast
from mest_fed.nn.models.resnet import ResidualBlock
from mest_fed.nn.norms import BatchNorm2d, Statistics

#: How often each convolution is computed in a step: in forward, and in the walks.
FORWARDS = {"conv1": 4, "conv2": 2, "shortcut.0": 3}


def handles(segment: Segment) -> bool:
    """Whether a segment is a residual block whose norms are all of batches."""
    block = segment.module
    if not (isinstance(block, ResidualBlock) and segment.computes(ResidualBlock.forward)):
        return False
    around = list(block.shortcut)
    convolutions = [block.conv1, block.conv2, *around[:1]]
    norms = [block.norm1, block.norm2, *around[1:]]
    return len(around) in (0, 2) and walks_over(convolutions, norms)


def walks_over(convolutions: list[nn.Module], norms: list[nn.Module]) -> bool:
    """Whether the backward passes of such layers can be ordered by hand."""
    layers = [*convolutions, *norms]
    return (
        len({id(layer) for layer in layers}) == len(layers)
        and all(convolves_by_hand(layer) for layer in convolutions)
        and all(type(norm) is BatchNorm2d and norm.affine for norm in norms)
    )


def suits(segment: Segment, x: Tensor) -> bool:
    """Whether a segment that is handled can be computed by hand for an input, as things are.

    A norm that its owner put into evaluation keeps to its running statistics; hooks, autocast and
    tensors in the place of parameters are not looked at by hand.
    """
    parts = [module for module in segment.modules() if module is not segment.module]
    return (
        x.dim() == 4
        and all(weight.dtype == x.dtype for weight in segment.parameters())
        and all(module.training and is_plain(module) for module in parts)
        and not Autocast(x.device).enabled
    )


def _norm(module: nn.Module) -> BatchNorm2d:
    """Return one of the norms that :func:`handles` has seen to."""
    assert isinstance(module, BatchNorm2d)
    return module


class RecomputedBlock(torch.autograd.Function):
    """See the module. Takes the block's parameters, so that autograd hands their gradients on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Packed,
        segment: Segment,
        work: Workspace,
        *parameters: Tensor,
    ) -> Tensor:
        """Run the block with one activation of the whole batch beside its input."""
        keep(ctx, packed, parameters)
        ctx.segment, ctx.work = segment, work
        block = segment.module
        assert isinstance(block, ResidualBlock)
        y: Tensor = block.conv1(x)
        first = _norm(block.norm1).normalise_(y, None, relu=True)
        for start, end in micro_chunks(y.shape):
            chunk = y[start:end]
            chunk.copy_(convolve(block.conv2, chunk, work.take("conv2", chunk.shape, y)))
        residual, around = x, None
        if len(block.shortcut):
            residual = block.shortcut[0](x)
            around = _norm(block.shortcut[1]).normalise_(residual, None, relu=False)
        second = _norm(block.norm2).normalise_(y, residual, relu=True)
        ctx.statistics = first, second, around
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Walk three times over the images."""
        packed, _ = kept(ctx, ctx.segment)
        walks = _Walks(ctx.segment.module, packed, grad, ctx.statistics, ctx.work)
        walks.to_second_norm()
        walks.to_first_norm()
        dx = walks.to_input(wanted=ctx.needs_input_grad[0])
        gradients = walks.gradients
        return dx, None, None, None, *(gradients.get(parameter) for parameter in ctx.parameters)


_Statistics = tuple[Statistics, Statistics, Statistics | None]


class _Walks:
    """The three walks. ``second`` holds what conv2 gave, then norm1's gradient, then dx."""

    def __init__(
        self,
        block: ResidualBlock,
        packed: Packed,
        grad: Tensor,
        statistics: _Statistics,
        work: Workspace,
    ) -> None:
        self.block, self.packed, self.grad, self.work = block, packed, grad, work
        self.gradients: Gradients = {}
        first, second, around = statistics
        self.norm1 = NormBackward(_norm(block.norm1), first, self.gradients)
        self.norm2 = NormBackward(_norm(block.norm2), second, self.gradients)
        self.around = None
        if around is not None:
            self.around = NormBackward(_norm(block.shortcut[1]), around, self.gradients)
        self.count = grad.shape[0] * grad.shape[2:].numel()
        self.second = grad.new_empty(grad.shape)
        self.open = torch.empty(grad.shape, dtype=torch.bool, device=grad.device)

    def to_second_norm(self) -> None:
        """Compute what the convolutions gave, and the sums of norm2 and of the shortcut's norm."""
        for start, end in micro_chunks(self.grad.shape):
            x, c = self.packed.images(start, end), self.second[start:end]
            a = self._first(x, start, end)
            y = self._buffer("y", start, end)
            convolve(self.block.conv2, self.norm1.apply(a, y).relu_(), c)
            self.norm2.apply(c, y)
            beside = self._beside(x, start, end)
            y += (
                x
                if self.around is None
                else self.around.apply(beside, self._buffer("z", start, end))
            )
            torch.gt(y, 0, out=self.open[start:end])
            grad = self._open_gradient(start, end)
            self.norm2.add(grad, c, y)
            if self.around is not None:
                self.around.add(grad, beside, y)
        self.norm2.close(self.count)
        if self.around is not None:
            self.around.close(self.count)

    def to_first_norm(self) -> None:
        """Go back through norm2 and conv2, to the gradient behind norm1 and its sums."""
        for start, end in micro_chunks(self.grad.shape):
            a = self._first(self.packed.images(start, end), start, end)
            c = self.second[start:end]
            grad = self._open_gradient(start, end)
            dc = self.norm2.input_gradient(grad, c, self._buffer("y", start, end))
            b = self.norm1.apply(a, self._buffer("z", start, end)).relu_()
            convolve_back(self.block.conv2, b, dc, c, self.gradients)
            c *= torch.gt(b, 0, out=self._buffer("sign", start, end, torch.bool))
            self.norm1.add(c, a, b)
        self.norm1.close(self.count)

    def to_input(self, *, wanted: bool) -> Tensor | None:
        """Go back through norm1 and conv1, add what came by the shortcut; return dx."""
        same = self.packed.shape == self.grad.shape
        # A chunk of `second` has been read when a chunk of dx is written over it.
        dx = self.second if same else self.grad.new_empty(self.packed.shape if wanted else 0)
        for start, end in micro_chunks(self.grad.shape):
            x = self.packed.images(start, end)
            a = self._first(x, start, end)
            da = self.norm1.input_gradient(self.second[start:end], a, a)
            to = dx[start:end] if wanted else None
            convolve_back(self.block.conv1, x, da, to, self.gradients)
            beside = self._open_gradient(start, end)
            if self.around is not None:
                s = self._beside(x, start, end)
                ds = self.around.input_gradient(beside, s, s)
                beside = self.work.take("dx", x.shape, x) if wanted else ds
                into = beside if wanted else None
                convolve_back(self.block.shortcut[0], x, ds, into, self.gradients)
            if to is not None:
                to += beside
        return dx if wanted else None

    def _first(self, x: Tensor, start: int, end: int) -> Tensor:
        """Return what the first convolution gives."""
        return convolve(self.block.conv1, x, self._buffer("a", start, end))

    def _beside(self, x: Tensor, start: int, end: int) -> Tensor:
        """Return what the shortcut's convolution gives, or its input where it has none."""
        if self.around is None:
            return x
        return convolve(self.block.shortcut[0], x, self._buffer("beside", start, end))

    def _open_gradient(self, start: int, end: int) -> Tensor:
        """Return the gradient before the last ReLU."""
        to = self._buffer("grad", start, end)
        return torch.mul(self.grad[start:end], self.open[start:end], out=to)

    def _buffer(self, name: str, start: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        shape = torch.Size((end - start, *self.grad.shape[1:]))
        return self.work.take(name, shape, self.grad, dtype)
