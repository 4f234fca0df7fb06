"""A dense convolution of few columns, computed by the sparse kernels where they are there.

The first convolution and the 1x1 shortcuts stay dense, and are small: torch spends more on bringing
their planes into its blocked form than on multiplying. All of their strips are active.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from mest_fed.kernels import (
    PADDED,
    ConvGeometry,
    How,
    SparseProduct,
    SparseWeight,
    Strips,
    available,
)
from mest_fed.kernels.functions import backward, forward
from mest_fed.kernels.native import OPERATORS
from mest_fed.kernels.pooling import ReLUPool
from mest_fed.kernels.reference import dense_backward_input, dense_backward_weight

#: Columns (in_channels * kernel area) up to which the kernels are ahead of torch 2.13, measured.
FEW_COLUMNS = 64


class Conv2d(nn.Conv2d):
    """torch's layer: the same parameters, another way to compute it.

    Attributes
    ----------
    fused : bool
        False keeps to torch's own operator.
    """

    fused = True

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` of shape (n, in, h, w)."""
        if not self._few_columns(x):
            return super().forward(x)
        y: Tensor = SparseProduct.apply(  # type: ignore[no-untyped-call]
            x, self._values(), self.bias, self._everything(), How(self._geometry, PADDED)
        )
        return y

    def into(self, x: Tensor, y: Tensor) -> Tensor:
        """Convolve ``x`` into ``y``, unseen by autograd."""
        if not self._few_columns(x):
            return y.copy_(super().forward(x))
        values, how = self._values().detach(), How(self._geometry, PADDED)
        return forward(x, values, self.bias, self._everything(), how, into=y)

    def gradients(
        self, x: Tensor, grad: Tensor, into: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradients for an output's gradient; see ``SparseConv2d.gradients``."""
        if not self._few_columns(x):
            return dense_gradients(self, x, grad, into)
        values, how = self._values().detach(), How(self._geometry, PADDED)
        wanted = (into is not None, self.weight.requires_grad)
        gradient = backward(grad, x, values, self._everything(), how, wanted=wanted, into=into)[1]
        if gradient is not None:
            strips = gradient.view(-1, self.weight[0].numel(), self._rows).transpose(1, 2)
            gradient = strips.reshape(self.weight.shape)
        return self.weight, gradient

    @property
    def _rows(self) -> int:
        return 4 if self.out_channels % 4 == 0 else 1

    def _values(self) -> Tensor:
        strips = self.weight.view(self.out_channels // self._rows, self._rows, -1)
        return strips.transpose(1, 2).reshape(-1, self._rows)

    def _everything(self) -> SparseWeight:
        weight = self.weight
        active = weight.numel() // self._rows
        slots = torch.arange(active, dtype=torch.int32, device=weight.device)
        return SparseWeight(tuple(weight.shape), slots, Strips(self._rows), lambda: slots)

    @property
    def _geometry(self) -> ConvGeometry:
        stride, dilation = self.stride, self.dilation
        assert not isinstance(self.padding, str)
        return ConvGeometry(
            (stride[0], stride[1]),
            (self.padding[0], self.padding[1]),
            (dilation[0], dilation[1]),
        )

    def _few_columns(self, x: Tensor) -> bool:
        return (
            self.fused
            and x.dim() == 4
            and x.shape[1] == self.in_channels  # else torch says what is wrong
            and self.weight[0].numel() <= FEW_COLUMNS
            and self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and x.device.type in ("cpu", "meta")
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and available()
        )


def dense_gradients(
    layer: nn.Conv2d, x: Tensor, grad: Tensor, into: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Give the gradients of any dense convolution; see ``SparseConv2d.gradients``."""
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    assert not isinstance(padding, str)
    geometry = ConvGeometry(
        (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])
    )
    weight = layer.weight.detach()
    if into is not None:
        into.copy_(dense_backward_input(grad, x, weight, geometry))
    trains = layer.weight.requires_grad
    return layer.weight, dense_backward_weight(grad, x, weight, geometry) if trains else None


class ReLUMaxPool2d(nn.Module):
    """ReLU, then the maximum of each 2x2 window; a last odd row or column is left out.

    The same bits as ``MaxPool2d(2)(ReLU()(x))``, and of its gradient. On a CPU with the compiled
    kernels it is one operator, which keeps a byte an output; elsewhere torch's two.

    Attributes
    ----------
    fused : bool
        False keeps to torch's own operators.
    """

    fused = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, channels, h // 2, w // 2)."""
        pooled: Tensor
        if not self._fuses(x):
            return max_pool2d(torch.relu(x), 2)
        if torch.is_grad_enabled() and x.requires_grad:
            pooled = ReLUPool.apply(x)  # type: ignore[no-untyped-call]
        else:
            pooled, _ = OPERATORS.relu_pool(x, False)
        return pooled

    def _fuses(self, x: Tensor) -> bool:
        return (
            self.fused
            and x.dim() == 4
            and x.numel() > 0
            and min(x.shape[2:]) > 1  # else torch says what is wrong
            and x.device.type in ("cpu", "meta")
            and x.dtype == torch.float32
            and available()
        )
