"""Normalisation layers that take the residual addition and the ReLU behind them along.

They are torch's own layers with the same parameters and buffers. On a CPU with the compiled kernels
they run as one operator (see mest_fed.kernels.norm); elsewhere as torch's separate ones.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mest_fed.kernels import available
from mest_fed.kernels.native import OPERATORS
from mest_fed.kernels.norm import NormAct


class Statistics(NamedTuple):
    """Mean and 1 / deviation of each channel of a batch."""

    mean: Tensor
    scale: Tensor


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
        self._track(Statistics(mean, scale), count)
        return z

    @torch.no_grad()
    def normalise_(self, x: Tensor, residual: Tensor | None, *, relu: bool) -> Statistics:
        """Do what :meth:`forward` does in training over ``x`` itself; return its statistics.

        For those who order a backward pass by hand: autograd sees nothing of it.

        Raises
        ------
        ValueError
            If a channel has one value alone, as torch does.
        """
        count = x.numel() // self.num_features
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got {x.shape}")
        if _fuses(self, x):
            given = (self.weight, self.bias, residual, 0, relu, self.eps)
            statistics = Statistics(*OPERATORS.norm_(x, *given))
        else:
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            statistics = Statistics(mean, torch.rsqrt(variance + self.eps))
            factor = self.weight * statistics.scale
            x.mul_(factor.view(-1, 1, 1)).add_((self.bias - mean * factor).view(-1, 1, 1))
            if residual is not None:
                x.add_(residual)
            if relu:
                x.relu_()
        self._track(statistics, count)
        return statistics

    def _track(self, statistics: Statistics, count: int) -> None:
        """Move the running statistics towards those of a batch of ``count`` values a channel."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        variance = (statistics.scale**-2 - self.eps) * (count / max(1, count - 1))
        self.running_mean.lerp_(statistics.mean, momentum)
        self.running_var.lerp_(variance, momentum)


class GroupNorm(nn.GroupNorm):
    """Group normalisation, with an optional residual and ReLU; see :class:`BatchNorm2d`."""

    fused = True

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return relu(normalised x + residual), each if asked for; x (n, channels, ...)."""
        if x.numel() == 0 or not _fuses(self, x):
            return _behind(super().forward(x), residual, relu)
        groups = self.num_groups
        return _norm_act(x, self.weight, self.bias, residual, groups, relu, self.eps)[0]


def group_norm(channels: int) -> GroupNorm:
    """Return GroupNorm of gcd(channels, 8) groups."""
    return GroupNorm(math.gcd(channels, 8), channels)


def has_batch_statistics(model: nn.Module) -> bool:
    """Say whether a model takes statistics over a batch, of which each part then needs several."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@dataclass(frozen=True)
class Normalised:
    """How a fused normalisation made its output, which can so be made again.

    Parameters
    ----------
    x : Tensor
        Its input.
    gamma, beta : Tensor
        Its parameters, which must not change in between.
    statistics : Statistics
        Of each channel, or of each image and group.
    groups : int
        0 for batch norm.
    relu : bool
        Whether a ReLU followed.
    """

    x: Tensor
    gamma: Tensor
    beta: Tensor
    statistics: Statistics
    groups: int
    relu: bool

    def without_input(self) -> "Normalised":
        """Return the same without a reference to the input."""
        return replace(self, x=self.x.new_empty(0))

    @torch.no_grad()
    def again(self, x: Tensor) -> Tensor:
        """Make the output again from the input."""
        mean, scale = self.statistics
        if self.groups:
            each = len(self.gamma) // self.groups
            mean, scale = (
                s.view(-1, self.groups).repeat_interleave(each, 1) for s in (mean, scale)
            )
        factor = self.gamma * scale
        constant = self.beta - mean * factor
        shape = (-1, len(self.gamma), *[1] * (x.dim() - 2))
        y = torch.addcmul(constant.view(shape), x, factor.view(shape))
        return y.relu_() if self.relu else y


#: Receives each fused normalisation without a residual: its output, and how it was made.
Watcher = Callable[[Tensor, Normalised], None]
#: The watchers of this context.
WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


def watching(watcher: Watcher) -> AbstractContextManager[None]:
    """Have normalisations tell a watcher what they make, within."""
    return _watched_by((*WATCHERS.get(), watcher))


def unwatched() -> AbstractContextManager[None]:
    """Disable watchers in the block: the outputs in it are not kept."""
    return _watched_by(())


@contextmanager
def _watched_by(watchers: tuple[Watcher, ...]) -> Iterator[None]:
    before = WATCHERS.set(watchers)
    try:
        yield
    finally:
        WATCHERS.reset(before)


def _norm_act(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = NormAct.apply(x, *rest)  # type: ignore[no-untyped-call]
    gamma, beta, residual, groups, relu, _ = rest
    if residual is None and WATCHERS.get() and torch.is_grad_enabled():
        y, *statistics = result
        made = Normalised(x, gamma, beta, Statistics(*statistics), groups, relu)
        for watcher in WATCHERS.get():
            watcher(y, made)
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
