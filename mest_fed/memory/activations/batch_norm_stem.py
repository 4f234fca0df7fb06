"""A convolution with batch normalisation and ReLU that reads the images, recomputed in two walks.

As :mod:`mest_fed.memory.activations.batch_norm_block`, for the first layer of a network: nothing
wants the gradient of its input.
"""

from typing import Any

import torch
from torch import Tensor

from mest_fed.memory.activations.batch_norm_backward import (
    Gradients,
    NormBackward,
    convolve,
    convolve_back,
)
from mest_fed.memory.activations.batch_norm_block import walks_over
from mest_fed.memory.activations.micro_chunks import Workspace, micro_chunks
from mest_fed.memory.activations.recompute import keep, kept
from mest_fed.memory.activations.saved_tensors import Packed
from mest_fed.memory.activations.segments import Segment
from mest_fed.nn.models.resnet import ResNet
from mest_fed.nn.norms import BatchNorm2d

#: How often the convolution is computed in a step: in forward, and in both walks.
FORWARDS = {"conv1": 3}


def handles(segment: Segment) -> bool:
    """Whether a segment is the stem of a ResNet with batch normalisation."""
    model = segment.module
    if not (isinstance(model, ResNet) and segment.computes(ResNet.stem)):
        return False
    return walks_over([model.conv1], [model.norm1])


class RecomputedStem(torch.autograd.Function):
    """See the module. Takes its parameters, so that autograd hands their gradients on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        packed: Packed,
        segment: Segment,
        work: Workspace,
        *parameters: Tensor,
    ) -> Tensor:
        """Run the stem, normalising in place."""
        keep(ctx, packed, parameters)
        ctx.segment, ctx.work = segment, work
        model = segment.module
        assert isinstance(model, ResNet)
        y: Tensor = model.conv1(x)
        assert isinstance(model.norm1, BatchNorm2d)
        ctx.statistics = model.norm1.normalise_(y, None, relu=True)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Walk up to the sums of the normalisation, then to the convolution's weight."""
        gradients: Gradients = {}
        packed, _ = kept(ctx, ctx.segment)
        model, work = ctx.segment.module, ctx.work
        conv, norm = model.conv1, NormBackward(model.norm1, ctx.statistics, gradients)
        for start, end in micro_chunks(grad.shape):
            x, a = packed.images(start, end), work.take("a", grad[start:end].shape, grad)
            convolve(conv, x, a)
            open_gradient = _open_gradient(norm, a, grad[start:end], work)
            norm.add(open_gradient, a, work.take("y", a.shape, a))
        norm.close(grad.shape[0] * grad.shape[2:].numel())
        for start, end in micro_chunks(grad.shape):
            x, a = packed.images(start, end), work.take("a", grad[start:end].shape, grad)
            convolve(conv, x, a)
            da = norm.input_gradient(_open_gradient(norm, a, grad[start:end], work), a, a)
            convolve_back(conv, x, da, None, gradients)
        return None, None, None, None, *(gradients.get(p) for p in ctx.parameters)


def _open_gradient(norm: NormBackward, a: Tensor, grad: Tensor, work: Workspace) -> Tensor:
    """Return the gradient before the ReLU."""
    y = norm.apply(a, work.take("y", a.shape, a))
    sign = torch.gt(y, 0, out=work.take("sign", a.shape, a, torch.bool))
    return torch.mul(grad, sign, out=work.take("grad", a.shape, a))
