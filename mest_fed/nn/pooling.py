"""ReLU and 2x2 maximum pooling in one layer."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from mest_fed.kernels import available
from mest_fed.kernels.library import OPERATORS
from mest_fed.kernels.pooling import ReLUPool


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
