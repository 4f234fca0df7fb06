"""The compiled kernels, behind checks: whatever arrives is refused with an error, or is safe."""

import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from mest_fed.kernels.weight import ConvGeometry

try:
    from mest_fed.kernels import _native as _compiled

    _module: ModuleType | None = _compiled
except ImportError:  # installed without a compiler
    _module = None

_warned = False

#: Ways to lay source planes out in scratch memory; see native/problem.h. Same bits either way.
PLANES = ("padded", "shifted")


def available() -> bool:
    """Whether the compiled kernels are there; says once, as a warning, that they are not."""
    global _warned
    if _module is None and not _warned:
        _warned = True
        warnings.warn(
            "mest_fed was installed without its compiled kernels: sparse layers run the slow "
            "torch reference (install a C++17 compiler, then reinstall mest-fed)",
            RuntimeWarning,
            stacklevel=2,
        )
    return _module is not None


def variant() -> str | None:
    """Return the instruction set of the compiled kernels (``avx512``, ``avx2``, ``plain``)."""
    return None if _module is None else str(_module.variant())


def scratch_bytes() -> int:
    """Return the bytes that the kernels' threads hold as scratch memory now."""
    return 0 if _module is None else int(_module.scratch_bytes())


def _check(tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if tensor.device.type != "cpu" or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, "
            f"must be {dtype} of shape {shape} on cpu"
        )
    return tensor.contiguous()


class Problem:
    """Sizes of one call, as the compiled kernels take them.

    Parameters
    ----------
    size : sequence of int
        Shape of the input, (n, in, h, w).
    shape : sequence of int
        Shape of the dense weight, (out, in, kh, kw).
    rows : int
        Rows of a strip; 1 where ``cells`` is given.
    cells : Tensor or None
        int32 (variants, width): the taps that each variant of a kernel keeps.
    geometry : ConvGeometry
        Stride, padding, dilation.

    Raises
    ------
    ValueError
        If the sizes do not fit each other.
    """

    def __init__(
        self,
        size: Sequence[int],
        shape: Sequence[int],
        rows: int,
        cells: Tensor | None,
        geometry: ConvGeometry,
    ) -> None:
        self.size = tuple(size)
        self.out_channels, in_channels, *kernel = shape
        if len(self.size) != 4 or len(shape) != 4 or self.size[1] != in_channels:
            raise ValueError(f"an input of shape {self.size} does not fit a weight of {shape}")
        if rows < 1:
            raise ValueError(f"rows = {rows}, must be at least 1")
        self.rows = rows
        self.width = rows
        self.cells = cells
        if cells is not None:
            self.width = cells.shape[1]
            self.cells = _check(cells, "cells", (len(cells), self.width), torch.int32)
        out = geometry.out_size((self.size[2], self.size[3]), (kernel[0], kernel[1]))
        if min(out) < 1:
            raise ValueError(f"a weight of {shape} is larger than an input of {self.size}")
        self.out_size = (self.size[0], self.out_channels, *out)
        self.numbers = (
            *self.size,
            *self.out_size[1:],
            *kernel,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
        )

    @property
    def empty(self) -> bool:
        """Whether there is no image."""
        return self.size[0] == 0

    def weight(self, slots: Tensor) -> tuple[int, int, int, int, int, int]:
        """Return the compiled kernels' view of the live granules; keep ``slots`` alive."""
        address, variants = (
            (0, 1) if self.cells is None else (self.cells.data_ptr(), len(self.cells))
        )
        return (slots.data_ptr(), len(slots), self.rows, address, variants, self.width)


def _slots(slots: Tensor) -> Tensor:
    return _check(slots, "slots", (slots.numel(),), torch.int32)


def _threads() -> int:
    return torch.get_num_threads()


def forward(
    x: Tensor, values: Tensor, slots: Tensor, bias: Tensor | None, problem: Problem, *, plane: int
) -> Tensor:
    """Convolve ``x`` (n, in, h, w)."""
    assert _module is not None
    slots = _slots(slots)
    x = _check(x, "x", problem.size, torch.float32)
    values = _check(values, "values", (len(slots), problem.width), torch.float32)
    if bias is not None:
        bias = _check(bias, "bias", (problem.out_channels,), torch.float32)
    y = x.new_empty(problem.out_size)
    if not problem.empty:
        _module.forward(
            problem.numbers,
            problem.weight(slots),
            values.data_ptr(),
            x.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            plane,
            _threads(),
        )
    return y


def backward_input(
    grad: Tensor, values: Tensor, slots: Tensor, problem: Problem, plane: int
) -> Tensor:
    """Return the gradient of the input."""
    assert _module is not None
    slots = _slots(slots)
    grad = _check(grad, "grad", problem.out_size, torch.float32)
    values = _check(values, "values", (len(slots), problem.width), torch.float32)
    dx = grad.new_empty(problem.size)
    if not problem.empty:
        _module.backward_input(
            problem.numbers,
            problem.weight(slots),
            values.data_ptr(),
            grad.data_ptr(),
            dx.data_ptr(),
            plane,
            _threads(),
        )
    return dx


def backward_values(grad: Tensor, x: Tensor, slots: Tensor, problem: Problem, plane: int) -> Tensor:
    """Return the gradient of the live values, (live, width)."""
    assert _module is not None
    slots = _slots(slots)
    grad = _check(grad, "grad", problem.out_size, torch.float32)
    x = _check(x, "x", problem.size, torch.float32)
    gradient = grad.new_zeros(len(slots), problem.width)
    if not problem.empty:
        _module.backward_values(
            problem.numbers,
            problem.weight(slots),
            x.data_ptr(),
            grad.data_ptr(),
            gradient.data_ptr(),
            plane,
            _threads(),
        )
    return gradient


def norm_forward(
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
    assert _module is not None
    (x, z), (gamma, beta, residual), (mean, scale), (relu, epsilon) = (
        planes,
        parameters,
        statistics,
        options,
    )
    sizes = _norm_sizes(x, groups, relu)
    x = _check(x, "x", tuple(z.shape), torch.float32)
    gamma = _check(gamma, "gamma", (sizes[1],), torch.float32)
    beta = _check(beta, "beta", (sizes[1],), torch.float32)
    if residual is not None:
        residual = _check(residual, "residual", tuple(x.shape), torch.float32)
    given = (gamma, beta, residual, x, z, mean, scale)
    _module.norm_forward(sizes, epsilon, (*map(_address, given), 0), _threads())


def norm_backward(
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
    assert _module is not None
    (dz, x, z), (gamma, beta), (mean, scale) = planes, parameters, statistics
    groups, relu = options
    dx, dresidual, dgamma, dbeta = results
    sizes = _norm_sizes(x, groups, relu)
    statistic = (sizes[1] if groups == 0 else sizes[0] * groups,)
    dz = _check(dz, "dz", tuple(x.shape), torch.float32)
    x = _check(x, "x", tuple(x.shape), torch.float32)
    z = None if z is None else _check(z, "z", tuple(x.shape), torch.float32)
    gamma = _check(gamma, "gamma", (sizes[1],), torch.float32)
    beta = _check(beta, "beta", (sizes[1],), torch.float32)
    mean = _check(mean, "mean", statistic, torch.float32)
    scale = _check(scale, "scale", statistic, torch.float32)
    # The compiled kernel reads z where there was a residual: its address says that there was one.
    given = (gamma, beta, z, x, z, mean, scale, dz)
    to = (dx, dresidual if dresidual.numel() else None, dgamma, dbeta)
    _module.norm_backward(sizes, tuple(map(_address, given)), tuple(map(_address, to)), _threads())


def _norm_sizes(x: Tensor, groups: int, relu: bool) -> tuple[int, int, int, int, int]:
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} has nothing to normalise")
    if groups < 0 or (groups > 0 and x.shape[1] % groups):
        raise ValueError(f"groups = {groups}, must divide {x.shape[1]} channels")
    return x.shape[0], x.shape[1], x[0, 0].numel(), groups, int(relu)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
