"""Calls of the compiled normalisation, behind checks."""

import torch
from torch import Tensor

from mest_fed.kernels import native
from mest_fed.kernels.native import address, checked


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
