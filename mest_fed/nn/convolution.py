"""A dense convolution of few columns, computed by the sparse kernels where they are there.

The first convolution and the 1x1 shortcuts stay dense, and are small: torch spends more on bringing
their planes into its blocked form than on multiplying. Every strip of them lives.
"""

import torch
from torch import Tensor, nn

from mest_fed.kernels import (
    PADDED,
    ConvGeometry,
    How,
    SparseProduct,
    SparseWeight,
    Strips,
    available,
)

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
        weight = self.weight
        rows = 4 if self.out_channels % 4 == 0 else 1
        strips = weight.view(self.out_channels // rows, rows, -1)
        values = strips.transpose(1, 2).reshape(-1, rows)
        slots = torch.arange(len(values), dtype=torch.int32)
        everything = SparseWeight(tuple(weight.shape), slots, Strips(rows), lambda: slots)
        y: Tensor = SparseProduct.apply(  # type: ignore[no-untyped-call]
            x, values, self.bias, everything, How(self._geometry, PADDED)
        )
        return y

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
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and available()
        )
