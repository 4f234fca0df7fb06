"""Bytes that operators take for themselves while they run, which no tensor shows."""

from typing import Any

import torch
from torch import Tensor

_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


def hidden_bytes(name: str, given: Any, made: Any, threads: int) -> int:
    """Return what an operator takes beside its arguments and results.

    Parameters
    ----------
    name : str
        Of the operator, such as ``mest_fed::conv2d``.
    given, made : tuple
        Its arguments and its result or results.
    threads : int
        Of the compiled kernels.
    """
    if name.startswith("mest_fed::conv2d"):
        return _kernels(name, given, threads)
    if name in _CONVOLUTIONS:
        return _blocked_copies(given, made)
    return 0


def _kernels(name: str, given: Any, threads: int) -> int:
    """Decoded mask and, for the values' gradient, a sum for each thread (native/convolve.cpp).

    Single rows go backward along a turned list of the mask: columns, origins and values once more.
    """
    tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
    slots = next(tensor for tensor in tensors if tensor.dtype == torch.int32)
    cells = [t for t in tensors if t.dtype == torch.int32 and t.dim() == 2]
    rows = next(number for number in given if isinstance(number, int))
    entries = len(slots) * (cells[0].shape[1] if cells else 1)
    lists = 2
    if rows == 1 and ("input" in name or "backward" in name):
        lists += 4
    sums = threads * entries * rows if "values" in name or "backward" in name else 0
    return 4 * (lists * entries + sums)


def _blocked_copies(given: Any, made: Any) -> int:
    """Reckon what oneDNN takes to bring operands into its blocked forms: a copy of each (measured)."""
    results = made if isinstance(made, tuple | list) else (made,)
    return sum(t.nbytes for t in (*given, *results) if isinstance(t, Tensor))
