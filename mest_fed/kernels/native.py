"""The compiled kernels, behind checks: whatever arrives is refused with an error, or is safe."""

import warnings
from types import ModuleType

import torch
from torch import Tensor

try:
    from mest_fed.kernels import _native as _compiled

    _module: ModuleType | None = _compiled
except ImportError:  # installed without a compiler
    _module = None

_warned = False

#: Ways to lay source planes out in scratch memory; see native/problem.h. Forward products have the
#: same bits either way; sums of the backward ones may be taken in another order.
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


def checked(
    tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a tensor that the compiled kernels may read: as said, on the CPU, contiguous.

    Raises
    ------
    ValueError
        If it is of another shape, type or device.
    """
    if tensor.device.type != "cpu" or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, "
            f"must be {dtype} of shape {shape} on cpu"
        )
    return tensor.contiguous()


def address(tensor: Tensor | None) -> int:
    """Return a tensor's address, 0 for None; keep the tensor alive while it is used."""
    return 0 if tensor is None else tensor.data_ptr()


def module() -> ModuleType:
    """Return the compiled module.

    Raises
    ------
    RuntimeError
        If mest_fed was installed without it.
    """
    if _module is None:
        raise RuntimeError("mest_fed was installed without its compiled kernels")
    return _module
