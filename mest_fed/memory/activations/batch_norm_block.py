"""A residual block with batch normalisation, recomputed in three walks over its images.

Batch statistics tie the images of a batch together, so that such a block cannot go backward image
by image. But all that ties them is two sums a channel. So backward walks over the images a piece at
a time: once up to the sums of the second normalisation, once up to those of the first, once to the
end. Two activations of the whole batch stand beside the incoming gradient, and one byte an element;
autograd's own order would hold eight.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mest_fed.memory.activations.formats import Packed
from mest_fed.memory.activations.norm_backward import Gradients, NormBackward
from mest_fed.memory.activations.pieces import pieces
from mest_fed.nn import SparseConv2d
from mest_fed.nn.convolution import Conv2d, dense_gradients
from mest_fed.nn.models.resnet import ResidualBlock
from mest_fed.nn.norms import BatchNorm2d


def handles(module: nn.Module) -> bool:
    """Whether a module is a residual block whose norms are all of batches."""
    if not isinstance(module, ResidualBlock):
        return False
    norms = [module.norm1, module.norm2, *list(module.shortcut)[1:]]
    return all(isinstance(norm, BatchNorm2d) and norm.affine for norm in norms)


class RecomputedBlock(torch.autograd.Function):
    """See the module. Takes the block's parameters, so that autograd hands their gradients on."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Packed, block: ResidualBlock, *parameters: nn.Parameter
    ) -> Tensor:
        """Run the block with one activation of the whole batch beside its input."""
        ctx.packed, ctx.block, ctx.parameters = packed, block, parameters
        y = block.conv1(x)
        first = block.norm1.normalise_(y, None, relu=True)
        for start, end in pieces(y.shape):
            y[start:end] = block.conv2(y[start:end])
        residual, around = x, None
        if len(block.shortcut):
            residual = block.shortcut[0](x)
            around = block.shortcut[1].normalise_(residual, None, relu=False)
        second = block.norm2.normalise_(y, residual, relu=True)
        ctx.statistics = first, second, around
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Walk three times over the images."""
        gradients: Gradients = {}
        block, (first, second, around) = ctx.block, ctx.statistics
        norms = {
            block.norm1: NormBackward(block.norm1, first, gradients),
            block.norm2: NormBackward(block.norm2, second, gradients),
        }
        if around is not None:
            shortcut = block.shortcut[1]
            norms[shortcut] = NormBackward(shortcut, around, gradients)
        walks = _Walks(block, ctx.packed, grad, norms, gradients)
        walks.to_second_norm()
        walks.to_first_norm()
        dx = walks.to_input(wanted=ctx.needs_input_grad[0])
        ctx.packed = None
        return dx, None, None, *(gradients.get(parameter) for parameter in ctx.parameters)


class _Walks:
    """The three walks. ``first`` holds conv1's output, ``second`` conv2's and then its gradient."""

    def __init__(
        self,
        block: ResidualBlock,
        packed: Packed,
        grad: Tensor,
        norms: dict[nn.Module, NormBackward],
        gradients: Gradients,
    ) -> None:
        self.block, self.packed, self.grad, self.gradients = block, packed, grad, gradients
        self.norm1, self.norm2 = norms[block.norm1], norms[block.norm2]
        self.around = norms[block.shortcut[1]] if len(block.shortcut) else None
        self.count = grad.shape[0] * grad.shape[2:].numel()
        self.first, self.second = grad.new_empty(grad.shape), grad.new_empty(grad.shape)
        self.open = torch.empty(grad.shape, dtype=torch.bool, device=grad.device)

    def to_second_norm(self) -> None:
        """Compute what the convolutions gave, and the sums of norm2 and of the shortcut's norm."""
        for start, end in pieces(self.grad.shape):
            x = self.packed.images(start, end)
            self.first[start:end] = self.block.conv1(x)
            c = self.block.conv2(self.norm1.apply(self.first[start:end]).relu_())
            self.second[start:end] = c
            y = self.norm2.apply(c)
            beside = x if self.around is None else self.block.shortcut[0](x)
            y += beside if self.around is None else self.around.apply(beside)
            torch.gt(y, 0, out=self.open[start:end])
            grad = self._open_gradient(start, end)
            self.norm2.add(grad, c)
            if self.around is not None:
                self.around.add(grad, beside)
        self.norm2.close(self.count)
        if self.around is not None:
            self.around.close(self.count)

    def to_first_norm(self) -> None:
        """Go back through norm2 and conv2, to the gradient behind norm1 and its sums."""
        for start, end in pieces(self.grad.shape):
            a = self.first[start:end]
            grad = self._open_gradient(start, end)
            grad = self.norm2.input_gradient(grad, self.second[start:end])
            b = self.norm1.apply(a).relu_()
            grad = self._convolve_back(self.block.conv2, b, grad)
            grad *= b > 0
            self.norm1.add(grad, a)
            self.second[start:end] = grad
        self.norm1.close(self.count)

    def to_input(self, *, wanted: bool) -> Tensor | None:
        """Go back through norm1 and conv1, add what came by the shortcut; return dx."""
        same = self.packed.shape == self.grad.shape
        # A piece of `second` has been read when a piece of dx is written over it.
        dx = self.second if same else self.grad.new_empty(self.packed.shape if wanted else 0)
        for start, end in pieces(self.grad.shape):
            x = self.packed.images(start, end)
            grad = self.norm1.input_gradient(self.second[start:end], self.first[start:end])
            grad = self._convolve_back(self.block.conv1, x, grad, wanted)
            beside = self._open_gradient(start, end)
            if self.around is not None:
                beside = self.around.input_gradient(beside, self.block.shortcut[0](x))
                beside = self._convolve_back(self.block.shortcut[0], x, beside, wanted)
            if wanted:
                torch.add(grad, beside, out=dx[start:end])
        return dx if wanted else None

    def _open_gradient(self, start: int, end: int) -> Tensor:
        """Return the gradient before the last ReLU."""
        return self.grad[start:end] * self.open[start:end]

    def _convolve_back(
        self, layer: nn.Module, x: Tensor, grad: Tensor, wanted: bool = True
    ) -> Tensor:
        """Add a weight's gradient to the sums; return the input's (empty unless wanted)."""
        if isinstance(layer, SparseConv2d):
            parameter = layer.values
            dx, gradient = layer.gradients(x, grad, (wanted, parameter.requires_grad))
        elif isinstance(layer, Conv2d):
            parameter = layer.weight
            dx, gradient = layer.gradients(x, grad, (wanted, parameter.requires_grad))
        else:
            assert isinstance(layer, nn.Conv2d)
            parameter = layer.weight
            dx, gradient = dense_gradients(layer, x, grad, (wanted, parameter.requires_grad))
        if gradient is not None:
            total = self.gradients.get(parameter)
            self.gradients[parameter] = gradient if total is None else total.add_(gradient)
        return grad.new_empty(0) if dx is None else dx
