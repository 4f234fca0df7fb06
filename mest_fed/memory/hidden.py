"""Bytes that operators take for themselves, which no tensor shows."""

from typing import Any

import torch
from torch import Tensor

_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
_PRODUCTS = ("aten::mm", "aten::addmm")

#: What oneDNN keeps of each distinct convolution: compiled code and its scratch. Measured, as the
#: rest that dense networks leave unexplained, 25 to 70 kB.
PRIMITIVE = 20_000
#: A matrix product whose largest operand has so many bytes makes MKL keep packed copies, of about
#: half that operand (measured).
LARGE_OPERAND = 2**20


class Hidden:
    """Counts what operators take while they run, and what they keep from then on.

    Parameters
    ----------
    threads : int
        Of the compiled kernels.

    Attributes
    ----------
    kept : int
        Bytes that the operators so far have kept.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._seen: set[tuple[Any, ...]] = set()
        self._packed = 0
        self._primitives = 0

    @property
    def kept(self) -> int:
        """Bytes that the operators so far have kept."""
        return self._packed + self._primitives

    def while_running(self, name: str, given: Any, made: Any) -> int:
        """Note an operator; return what it takes beside its arguments and results.

        Parameters
        ----------
        name : str
            Such as ``mest_fed::conv2d``.
        given, made : tuple
            Its arguments and its result or results.
        """
        if name.startswith("mest_fed::conv2d"):
            return _kernels(name, given, self._threads)
        if name in _CONVOLUTIONS:
            shapes = (name, *(tuple(t.shape) for t in given if isinstance(t, Tensor)))
            if shapes not in self._seen:
                self._seen.add(shapes)
                # Forward is one primitive, backward two.
                self._primitives += PRIMITIVE * (2 if "backward" in name else 1)
            return _blocked_copies(given, given[2 if "backward" in name else 1], made)
        if name in _PRODUCTS:
            largest = max(t.nbytes for t in (*given, made) if isinstance(t, Tensor))
            if largest >= LARGE_OPERAND:
                self._packed = max(self._packed, largest // 2)
        return 0


def _kernels(name: str, given: Any, threads: int) -> int:
    """Count the decoded mask and, for the values' gradient, a sum a thread (native/convolve.cpp).

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


def _blocked_copies(given: Any, weight: Tensor, made: Any) -> int:
    """Reckon what oneDNN takes to bring operands into its blocked forms.

    That is a copy of each activation and of the weight, and two of a weight that is turned (as one
    that lives in its input channels is). Reckoned so as to fit measurements.
    """
    results = made if isinstance(made, tuple | list) else (made,)
    tensors = [t for t in (*given, *results) if isinstance(t, Tensor) and t.dim() == 4]
    planes = [t for t in tensors if t.shape != weight.shape]
    return sum(t.nbytes for t in planes) + weight.nbytes * (1 if weight.is_contiguous() else 3)
