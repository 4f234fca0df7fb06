"""Normalisation, residual addition and ReLU as one operator, where the compiled kernels are there.

After sparse convolutions these are what a training step spends its time on: one pass over memory
instead of three forward and five backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mest_fed.kernels import native_norm
from mest_fed.kernels.library import OPERATORS, define, fake, implement, same_device

define(
    "norm(Tensor x, Tensor gamma, Tensor beta, Tensor? residual, int groups, bool relu, "
    "float epsilon) -> (Tensor, Tensor, Tensor)"
)
define(
    "norm_(Tensor(a!) x, Tensor gamma, Tensor beta, Tensor? residual, int groups, bool relu, "
    "float epsilon) -> (Tensor, Tensor)"
)
define(
    "norm_backward(Tensor dz, Tensor x, Tensor? z, Tensor gamma, Tensor beta, Tensor mean, "
    "Tensor scale, int groups, bool relu, bool residual) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _statistics(x: Tensor, groups: int) -> int:
    return x.shape[1] if groups == 0 else x.shape[0] * groups


@implement("norm")
def _norm(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    groups, relu, epsilon = rest
    native_norm.norm_sizes(x, groups, relu)
    z = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean, scale = (x.new_empty(_statistics(x, groups)) for _ in range(2))
    native_norm.forward((x, z), (gamma, beta, residual), (mean, scale), groups, (relu, epsilon))
    return z, mean, scale


@implement("norm_")
def _norm_in_place(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    groups, relu, epsilon = rest
    native_norm.norm_sizes(x, groups, relu)
    if not x.is_contiguous():
        raise ValueError("x must be contiguous to be normalised in place")
    mean, scale = (x.new_empty(_statistics(x, groups)) for _ in range(2))
    native_norm.forward((x, x), (gamma, beta, residual), (mean, scale), groups, (relu, epsilon))
    return mean, scale


@implement("norm_backward")
def _norm_backward(
    dz: Tensor, x: Tensor, z: Tensor | None, gamma: Tensor, beta: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, scale, groups, relu, residual = rest
    results = _empty_gradients(x, gamma, residual)
    native_norm.backward((dz, x, z), (gamma, beta), (mean, scale), results, (groups, relu))
    return results


def _empty_gradients(
    x: Tensor, gamma: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dresidual = torch.empty_like(dx) if residual else dx.new_empty(0)
    return dx, dresidual, torch.empty_like(gamma), torch.empty_like(gamma)


@fake("norm")
def _fake_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    same_device(x, *rest)
    groups = rest[3]
    z = torch.empty_like(x, memory_format=torch.contiguous_format)
    return z, x.new_empty(_statistics(x, groups)), x.new_empty(_statistics(x, groups))


@fake("norm_")
def _fake_norm_in_place(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    same_device(x, *rest)
    statistics = _statistics(x, rest[3])
    return x.new_empty(statistics), x.new_empty(statistics)


@fake("norm_backward")
def _fake_norm_backward(
    dz: Tensor, x: Tensor, z: Tensor | None, gamma: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    same_device(dz, x, z, gamma, *rest)
    return _empty_gradients(x, gamma, rest[5])


class NormAct(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + epsilon) * gamma + beta + residual).

    Saves ``x``, and the result only where there is a residual: else the sign before the ReLU is
    computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the result, and mean and 1 / deviation of each channel or group.

        ``rest`` is groups (0: batch norm), whether a ReLU follows, and epsilon.
        """
        groups, relu, epsilon = rest
        z, mean, scale = OPERATORS.norm(x, gamma, beta, residual, groups, relu, epsilon)
        kept = z if relu and residual is not None else None
        ctx.save_for_backward(x, gamma, beta, mean, scale, kept)
        ctx.groups, ctx.relu, ctx.residual = groups, relu, residual is not None
        ctx.mark_non_differentiable(mean, scale)
        return z, mean, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of input, gamma, beta and residual."""
        x, gamma, beta, mean, scale, z = ctx.saved_tensors
        dx, dresidual, dgamma, dbeta = OPERATORS.norm_backward(
            dz, x, z, gamma, beta, mean, scale, ctx.groups, ctx.relu, ctx.residual
        )
        return dx, dgamma, dbeta, dresidual if ctx.residual else None, None, None, None
