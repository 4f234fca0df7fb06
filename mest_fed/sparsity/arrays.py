"""Slots come as NumPy arrays or, on their way to a product on a GPU, as tensors of torch.

Functions that only count and index take both; this floor never imports torch.
"""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
#: int32, shape ``(active,)``, increasing.
Slots = npt.NDArray[np.int32]
#: int64 granules, positions or rows.
Indices = npt.NDArray[np.int64]


def namespace(array: object) -> Any:
    """Return the library of an array: NumPy, or the torch that is loaded already."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def whole(slots: Any) -> Any:
    """Return slots as int64, in which products of them do not overflow."""
    return slots.astype(np.int64, copy=False) if isinstance(slots, np.ndarray) else slots.long()


def counting(count: int, like: Any) -> Any:
    """Return 0 to ``count`` - 1 as int64, where ``like`` is."""
    if isinstance(like, np.ndarray):
        return np.arange(count)
    return namespace(like).arange(count, device=like.device)


def table(numbers: object, like: Any) -> Any:
    """Return numbers as an array where ``like`` is."""
    if isinstance(like, np.ndarray):
        return np.array(numbers)
    return namespace(like).tensor(numbers, device=like.device)


def norms(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the L2 norm of each row."""
    lengths: npt.NDArray[Any] = np.sqrt(np.einsum("ij,ij->i", values, values))
    return lengths


def sorted_down(scores: npt.NDArray[Any]) -> Indices:
    """Return the order of scores along the last axis, largest first; ties keep their order."""
    return np.argsort(-scores, axis=-1, kind="stable")
