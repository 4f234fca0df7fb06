"""Normalisation, residual addition and ReLU as one operator, where the compiled kernels are there.

After sparse convolutions these are what a training step spends its time on: one pass over memory
instead of three forward and five backward.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mest_fed.kernels import native
from mest_fed.kernels.native import (
    OPERATORS,
    address,
    checked,
    define,
    fake,
    implement,
    same_device,
)


def forward(
    planes: tuple[Tensor, Tensor],
    parameters: tuple[Tensor, Tensor, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    groups: int,
    options: tuple[bool, float],
) -> None:
    """Write z, mean and 1 / deviation; see native/norm.h.

    Parameters
    ----------
    planes : tuple of Tensor
        x and z, (n, channels, ...).
    parameters : tuple of Tensor
        gamma, beta (channels), and the residual, of x's shape, or None.
    statistics : tuple of Tensor
        Where mean and 1 / deviation go.
    groups : int
        0 for batch norm.
    options : tuple
        Whether a ReLU follows; epsilon.
    """
    (x, z), (gamma, beta, residual), (mean, scale), (relu, epsilon) = (
        planes,
        parameters,
        statistics,
        options,
    )
    sizes = norm_sizes(x, groups, relu)
    x = checked(x, "x", tuple(z.shape))
    gamma = checked(gamma, "gamma", (sizes[1],))
    beta = checked(beta, "beta", (sizes[1],))
    if residual is not None:
        residual = checked(residual, "residual", tuple(x.shape))
    given = (gamma, beta, residual, x, z, mean, scale)
    native.module().norm_forward(sizes, epsilon, (*map(address, given), 0), torch.get_num_threads())


def backward(
    planes: tuple[Tensor, Tensor, Tensor | None],
    parameters: tuple[Tensor, Tensor],
    statistics: tuple[Tensor, Tensor],
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    options: tuple[int, bool],
) -> None:
    """Write the gradients of x, residual (unless that is empty), gamma and beta.

    Parameters
    ----------
    planes : tuple of Tensor
        The gradient of z, x, and z (needed where there was a residual and a ReLU).
    parameters : tuple of Tensor
        gamma and beta.
    statistics : tuple of Tensor
        As the forward pass gave them.
    results : tuple of Tensor
        Contiguous, written to.
    options : tuple
        Groups, and whether a ReLU followed.
    """
    (dz, x, z), (gamma, beta), (mean, scale) = planes, parameters, statistics
    groups, relu = options
    dx, dresidual, dgamma, dbeta = results
    sizes = norm_sizes(x, groups, relu)
    statistic = (sizes[1] if groups == 0 else sizes[0] * groups,)
    dz = checked(dz, "dz", tuple(x.shape))
    x = checked(x, "x", tuple(x.shape))
    if z is None and relu and dresidual.numel():
        raise ValueError("z is None, must be given where a residual was added before a ReLU")
    z = None if z is None else checked(z, "z", tuple(x.shape))
    gamma = checked(gamma, "gamma", (sizes[1],))
    beta = checked(beta, "beta", (sizes[1],))
    mean = checked(mean, "mean", statistic)
    scale = checked(scale, "scale", statistic)
    # The compiled kernel reads z where there was a residual: its address says that there was one.
    given = (gamma, beta, z, x, z, mean, scale, dz)
    to = (dx, dresidual if dresidual.numel() else None, dgamma, dbeta)
    native.module().norm_backward(
        sizes, tuple(map(address, given)), tuple(map(address, to)), torch.get_num_threads()
    )


def norm_sizes(x: Tensor, groups: int, relu: bool) -> tuple[int, int, int, int, int]:
    """Return images, channels, plane, groups and whether a ReLU follows, as the kernels take them.

    Raises
    ------
    ValueError
        If ``x`` or ``groups`` do not make sense.
    """
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} has nothing to normalise")
    if groups < 0 or (groups > 0 and x.shape[1] % groups):
        raise ValueError(f"groups = {groups}, must divide {x.shape[1]} channels")
    return x.shape[0], x.shape[1], x[0, 0].numel(), groups, int(relu)


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
    norm_sizes(x, groups, relu)
    z = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean, scale = (x.new_empty(_statistics(x, groups)) for _ in range(2))
    forward((x, z), (gamma, beta, residual), (mean, scale), groups, (relu, epsilon))
    return z, mean, scale


@implement("norm_")
def _norm_in_place(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    groups, relu, epsilon = rest
    norm_sizes(x, groups, relu)
    if not x.is_contiguous():
        raise ValueError("x must be contiguous to be normalised in place")
    mean, scale = (x.new_empty(_statistics(x, groups)) for _ in range(2))
    forward((x, x), (gamma, beta, residual), (mean, scale), groups, (relu, epsilon))
    return mean, scale


@implement("norm_backward")
def _norm_backward(
    dz: Tensor, x: Tensor, z: Tensor | None, gamma: Tensor, beta: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, scale, groups, relu, residual = rest
    results = _empty_gradients(x, gamma, residual)
    backward((dz, x, z), (gamma, beta), (mean, scale), results, (groups, relu))
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
