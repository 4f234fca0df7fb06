"""Normalisation in float32, the same in float64 by torch's layers, and how far off it may be."""

from dataclasses import dataclass

import torch
from torch import nn

from mest_fed.kernels.norm import NormAct

UNIT = torch.finfo(torch.float32).eps / 2  # the relative error of one rounding
NAMES = ("z", "dx", "dgamma", "dbeta", "dresidual")
EPSILON = 1e-5


@dataclass
class NormCase:
    """One normalisation: float32 tensors, any strides; groups = 0 is batch norm."""

    x: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor
    residual: torch.Tensor | None
    upstream: torch.Tensor
    groups: int
    relu: bool

    @classmethod
    def draw(cls, shape, groups=0, *, relu=True, residual=True, seed=0, mean=0.0):
        """Draw numbers for images of (n, channels, h, w)."""
        generator = torch.Generator().manual_seed(seed)
        x, other, upstream = (torch.randn(shape, generator=generator) for _ in range(3))
        gamma, beta = (torch.randn(shape[1], generator=generator) for _ in range(2))
        return cls(x + mean, gamma, beta, other if residual else None, upstream, groups, relu)

    @property
    def leaves(self):
        """Return the tensors that have gradients."""
        parameters = (self.x, self.gamma, self.beta)
        return (*parameters, *(() if self.residual is None else (self.residual,)))

    def run(self):
        """Return z and the gradients; mean and 1 / deviation."""
        leaves = [leaf.detach().requires_grad_() for leaf in self.leaves]
        residual = leaves[3] if self.residual is not None else None
        z, mean, scale = NormAct.apply(*leaves[:3], residual, self.groups, self.relu, EPSILON)
        gradients = torch.autograd.grad(z, leaves, self.upstream)
        return [z.detach(), *gradients], (mean, scale)

    def layer(self):
        """Return torch's layer in float64."""
        channels = self.x.shape[1]
        kind = nn.GroupNorm(self.groups, channels) if self.groups else nn.BatchNorm2d(channels)
        kind.double()
        with torch.no_grad():
            kind.weight.copy_(self.gamma)
            kind.bias.copy_(self.beta)
        return kind

    def expected(self, open_):
        """Return z and the gradients in float64, where gradients pass as ``open_`` says.

        The mask is of the float32 result: a sum near zero may be on the other side there.
        """
        layer = self.layer()
        # Contiguous: of one image with other strides torch 2.13 confuses channels_last.
        x = self.x.double().contiguous().requires_grad_()
        y = layer(x)
        residual = None if self.residual is None else self.residual.double()
        total = y if residual is None else y + residual
        z = total.relu() if self.relu else total
        upstream = (self.upstream.double() * open_).contiguous()
        gradients = torch.autograd.grad(y, [x, layer.weight, layer.bias], upstream)
        return [z.detach(), *gradients, *([] if residual is None else [upstream])]

    def check(self):
        """Compare z, all gradients and the statistics with float64."""
        got, (mean, scale) = self.run()
        open_ = (got[0] > 0).double() if self.relu else torch.ones_like(got[0]).double()
        bound = Bound(self, open_)
        for name, a, b, most in zip(
            NAMES, got, self.expected(open_), bound.results(), strict=False
        ):
            assert a.shape == b.shape, name
            assert a.dtype == torch.float32, name
            off = (a.double() - b).abs()
            assert bool((off <= most).all()), (name, float((off / most).nan_to_num(9e9).max()))
        of = bound.statistic
        assert bool(((mean.double() - of(bound.mean)).abs() <= of(bound.mean_off)).all())
        relative = (scale.double() / of(bound.scale) - 1).abs()
        assert bool((relative <= of(bound.scale_off)).all())


class Bound:
    """What float32 may be off by, from the magnitudes of the float64 terms.

    Sums are taken in float32 lanes, which are emptied into a double after 1024 floats or a plane:
    a lane of the narrowest vector (4 floats) adds at most ``adds`` numbers.
    """

    def __init__(self, case, open_):
        self.case, x = case, case.x.double()
        self.shape = x.shape
        run = x[0, 0].numel()
        self.adds = min(x.numel(), run + 1024) / 4 + 8
        self.mean = self.average(x)
        first = x[:1] if case.groups == 0 else x.reshape(x.shape[0], case.groups, -1, run)[:, :, :1]
        shift = first.flatten(2 if case.groups == 0 else 1).mean(-1)
        if case.groups:
            shift = first.mean((2, 3)).repeat_interleave(self.shape[1] // case.groups, 1)
        shift = shift.view(-1, self.shape[1], *[1] * (x.dim() - 2))
        variance = self.average((x - self.mean) ** 2)
        self.scale = (variance + EPSILON).rsqrt()
        around = self.average((x - shift) ** 2)
        sums = (self.adds + 4) * UNIT
        self.mean_off = sums * around.sqrt() + 2 * UNIT * self.mean.abs()
        self.variance_off = 4 * sums * around
        self.scale_off = self.variance_off * self.scale**2 + 3 * UNIT
        self.open = open_ * case.upstream.double().abs()

    def average(self, tensor):
        """Return the mean over a channel or group, of a shape that broadcasts."""
        n, channels = self.shape[:2]
        groups = self.case.groups
        tail = [1] * (len(self.shape) - 2)
        if groups == 0:
            return tensor.transpose(0, 1).flatten(1).mean(1).view(1, channels, *tail)
        means = tensor.reshape(n, groups, -1).mean(2)
        return means.repeat_interleave(channels // groups, 1).view(n, channels, *tail)

    def statistic(self, tensor):
        """Return one number of each channel, or of each image and group."""
        groups, channels = self.case.groups, self.shape[1]
        flat = tensor.flatten(1)
        return flat[0] if groups == 0 else flat[:, :: channels // groups].flatten()

    def results(self):
        """Return the bounds of z, dx, dgamma, dbeta and dresidual."""
        case, scale, off = self.case, self.scale, self.scale_off
        tail = [1] * (len(self.shape) - 2)
        gamma, beta = (t.double().abs().view(-1, *tail) for t in (case.gamma, case.beta))
        x = case.x.double()
        centred = (x - self.mean).abs()
        normal = centred * scale  # |normalised x|
        added = 0 if case.residual is None else case.residual.double().abs()
        large = (x.abs() + self.mean.abs()) * 4 * UNIT
        z = gamma * scale * (self.mean_off + large + centred * (off + 4 * UNIT))
        z = z + 4 * UNIT * (gamma * normal + beta + added)

        sums = (self.adds + 8) * UNIT
        centred_off = self.mean_off + UNIT * centred
        through = self.open * gamma
        level, slope = self.average(through), self.average(through * normal)
        slope_off = sums * slope + off * slope + scale * self.average(through * centred_off)
        dx = through * (off + 4 * UNIT) + level * (sums + off + 4 * UNIT)
        dx = dx + normal * (slope_off + 3 * (off + UNIT) * slope) + scale * centred_off * slope
        each = self.open.transpose(0, 1).flatten(1)
        along = self.open * (normal * (sums + off + UNIT) + scale * centred_off)
        dgamma, dbeta = along.transpose(0, 1).flatten(1).sum(1), each.sum(1) * sums
        return [z + TINY, scale * dx + TINY, dgamma + TINY, dbeta + TINY, self.open * 0]


TINY = 1e-37  # below it float32 loses digits
