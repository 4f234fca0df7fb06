"""Shapes of compact storage, and the refusals that the compiled kernels and torch share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: What can be quantised, and what levels may be.
QUANTISED = (torch.float32, torch.float64)


def plane_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """Return the planes of a shape (n, c, ...), or (n, features), and the elements of each.

    Raises
    ------
    ValueError
        If there are fewer than 2 dimensions.
    """
    if len(shape) < 2:
        raise ValueError(f"shape {tuple(shape)}, must have at least 2 dimensions")
    own = 1 if len(shape) == 2 else 2
    return math.prod(shape[:own]), math.prod(shape[own:])


def image_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """Return the images of a shape (n, ...), and the elements of each.

    Raises
    ------
    ValueError
        If there is no dimension, or one is negative.
    """
    if len(shape) < 1 or min(shape) < 0:
        raise ValueError(f"shape {tuple(shape)}, must be of at least 1 dimension, none negative")
    return shape[0], math.prod(shape[1:])


def bytes_of(elements: int) -> int:
    """Return the bytes that hold a bit for each element of an image."""
    return (elements + 7) // 8


def check_quantised(codes: Tensor, levels: Tensor) -> None:
    """Refuse codes and levels that do not fit each other.

    Raises
    ------
    ValueError
        If codes are not uint8, or levels are not a float32 or float64 pair for each plane.
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes are {codes.dtype}, must be {torch.uint8}")
    planes, _ = plane_sizes(codes.shape)
    if levels.dtype not in QUANTISED or levels.dim() != 2 or tuple(levels.shape) != (planes, 2):
        raise ValueError(
            f"levels are {levels.dtype} of shape {tuple(levels.shape)}, "
            f"must be float32 or float64 of shape {(planes, 2)}"
        )


def check_squeezed(
    squeezed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> None:
    """Refuse parts of a squeezed tensor that cannot be of ``shape``, as far as sizes and types say.

    Raises
    ------
    ValueError
        If bits, values or starts are of another type or shape, or there are no images
        ``first`` to ``last``.
    """
    bits, values, starts = squeezed
    images, elements = image_sizes(shape)
    rows = (images, bytes_of(elements))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != rows:
        raise ValueError(
            f"bits are {bits.dtype} of shape {tuple(bits.shape)}, "
            f"must be {torch.uint8} of shape {rows}"
        )
    if not values.dtype.is_floating_point or values.dim() != 1:
        raise ValueError(
            f"values are {values.dtype} of shape {tuple(values.shape)}, must be a row of floats"
        )
    if starts.dtype != torch.int64 or tuple(starts.shape) != (images + 1,):
        raise ValueError(
            f"starts are {starts.dtype} of shape {tuple(starts.shape)}, "
            f"must be {torch.int64} of shape {(images + 1,)}"
        )
    if not 0 <= first <= last <= images:
        raise ValueError(f"first = {first}, last = {last}, must be a range of {images} images")
