"""Normalisation layers that take the residual addition and the ReLU behind them along.

They are torch's own layers with the same parameters and buffers. On a CPU with the compiled kernels
they run as one operator (see mest_fed.kernels.norm); elsewhere as torch's separate ones.
"""

import torch
from torch import Tensor, nn

from mest_fed.kernels import available
from mest_fed.kernels.norm import NormAct


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation, with an optional residual and ReLU.

    Attributes
    ----------
    fused : bool
        False keeps to torch's own operators.
    """

    fused = True

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return relu(normalised x + residual), each if asked for; x (n, channels, h, w)."""
        self._check_input_dim(x)
        count = x.numel() // self.num_features
        if not (self.training and count > 1 and _fuses(self, x)):
            return _behind(super().forward(x), residual, relu)
        z, mean, scale = _norm_act(x, self.weight, self.bias, residual, 0, relu, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
            variance = (scale**-2 - self.eps) * (count / (count - 1))
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)
        return z


class GroupNorm(nn.GroupNorm):
    """Group normalisation, with an optional residual and ReLU; see :class:`BatchNorm2d`."""

    fused = True

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return relu(normalised x + residual), each if asked for; x (n, channels, ...)."""
        if x.numel() == 0 or not _fuses(self, x):
            return _behind(super().forward(x), residual, relu)
        groups = self.num_groups
        return _norm_act(x, self.weight, self.bias, residual, groups, relu, self.eps)[0]


def _norm_act(x: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = NormAct.apply(x, *rest)  # type: ignore[no-untyped-call]
    return result


def _fuses(norm: BatchNorm2d | GroupNorm, x: Tensor) -> bool:
    weight = norm.weight  # None where affine is off
    return (
        norm.fused
        and weight is not None
        and x.device.type in ("cpu", "meta")
        and x.dtype == weight.dtype == torch.float32
        and available()
    )


def _behind(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    if residual is not None:
        y = y + residual
    return torch.relu_(y) if relu else y
