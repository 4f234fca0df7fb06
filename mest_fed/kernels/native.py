"""The compiled kernels, behind checks: unsafe arguments are refused with an error."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
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
    """Return the instruction set of the compiled kernels, ``plain`` or a name such as ``avx2``.

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


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch, and the compiled kernels with it, compute on ``count`` threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


Function = TypeVar("Function", bound=Callable[..., object])

_library = torch.library.Library("mest_fed", "DEF")  # type: ignore[no-untyped-call]

#: The operators.
OPERATORS = torch.ops.mest_fed


def define(schema: str) -> None:
    """Declare an operator."""
    _library.define(schema)  # type: ignore[no-untyped-call]


def implement(name: str, where: str = "CPU") -> Callable[[Function], Function]:
    """Register what computes an operator on the CPU, or where one of torch's dispatch keys says."""

    def register(function: Function) -> Function:
        _library.impl(name, function, where)  # type: ignore[no-untyped-call]
        return function

    return register


def fake(name: str) -> Callable[[Function], Function]:
    """Register what says an operator's shapes without computing."""

    def register(function: Function) -> Function:
        torch.library.register_fake(f"mest_fed::{name}", function, lib=_library)
        return function

    return register


def same_device(*arguments: object) -> None:
    """Refuse meta tensors beside real ones: torch asks for a shape and takes it for numbers.

    Raises
    ------
    ValueError
        If the tensors among the arguments are on several devices.
    """
    devices = {argument.device.type for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors on several devices: {sorted(devices)}")


Doubles = npt.NDArray[np.float64]


def weighted_sum(arrays: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> Doubles:
    """Return the sum of weight times array.

    The order is a binary tree over the arrays that splits at the largest power of two below their
    number; each product and each sum is rounded once. So the bits are the same with the compiled
    kernels and without.

    Parameters
    ----------
    arrays : sequence of arrays
        Real numbers, at least one array, all of one shape. The compiled kernels take float32.
    weights : sequence of float
        One for each array.

    Raises
    ------
    ValueError
        If there is no array, or shapes or numbers differ.
    """
    if not arrays or len(arrays) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(arrays)} arrays")
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ValueError("the arrays have different shapes")
    if available() and all(_plain(array) for array in arrays):
        total = np.empty(arrays[0].shape)
        addresses = [array.ctypes.data for array in arrays]
        module().weighted_sum(addresses, list(weights), total.size, total.ctypes.data)
        return total
    return tree_sum(arrays, weights)


def _plain(array: npt.NDArray[Any]) -> bool:
    return array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned


def tree_sum(arrays: Sequence[npt.NDArray[Any]], weights: Sequence[float]) -> Doubles:
    """Add weighted arrays pairwise in NumPy: the reference, with the compiled kernel's bits."""
    if len(arrays) == 1:
        product: Doubles = np.multiply(arrays[0], weights[0], dtype=np.float64)
        return product
    left = 1 << ((len(arrays) - 1).bit_length() - 1)
    total = tree_sum(arrays[:left], weights[:left])
    total += tree_sum(arrays[left:], weights[left:])
    return total
