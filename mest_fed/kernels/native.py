"""The compiled kernels, behind checks: whatever arrives is refused with an error, or is safe."""

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mest_fed.errors import InputError

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
    """Return the instruction set of the compiled kernels (``avx512``, ``avx2``, ``plain``).

    Raises
    ------
    InputError
        If the environment's MEST_FED_KERNELS asks for one that this machine has not.
    """
    if _module is None:
        return None
    try:
        return str(_module.variant())
    except ValueError as error:
        raise InputError(str(error)) from None


def scratch_bytes() -> int:
    """Return the bytes that the kernels' threads hold as scratch memory now."""
    return 0 if _module is None else int(_module.scratch_bytes())


def scratch_of(work: Callable[[], object]) -> int:
    """Return the bytes of scratch memory that some work has this thread's kernels take.

    What the thread held before is given back first, so that earlier work does not count.
    """
    if _module is None:
        return 0
    _module.release_thread_scratch()
    work()
    return int(_module.thread_scratch_bytes())


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


def written(tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor that the compiled kernels may write to: as :func:`checked`, in place.

    Raises
    ------
    ValueError
        If it is of another shape, type or device, or not contiguous.
    """
    checked(tensor, name, shape)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous, so that it cannot be written to")
    return tensor


def address(tensor: Tensor | None) -> int:
    """Return a tensor's address, 0 for None; keep the tensor alive while it is used."""
    return 0 if tensor is None else tensor.data_ptr()


@cache
def module() -> ModuleType:
    """Return the compiled module.

    Raises
    ------
    RuntimeError
        If mest_fed was installed without it.
    InputError
        As :func:`variant`.
    """
    if _module is None:
        raise RuntimeError("mest_fed was installed without its compiled kernels")
    variant()
    return _module
