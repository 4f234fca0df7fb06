"""Compact storage by torch's own operators: for any device, and for other floats than float32.

Every step is exact or rounded once, so float32 has the bits of the compiled kernels.
"""

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


def check_packed(
    packed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> None:
    """Refuse parts of a packed tensor that cannot be of ``shape``, as far as sizes and types say.

    Raises
    ------
    ValueError
        If bits, values or starts are of another type or shape, or there are no images
        ``first`` to ``last``.
    """
    bits, values, starts = packed
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


#: Steps are this large at least, so that no scale overflows.
LEAST_STEP = 2.0**-110

#: Binary places to which codes are computed before they are rounded.
_PLACES = 15


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and levels; see :func:`mest_fed.kernels.compact.quantise`."""
    planes, plane = plane_sizes(x.shape)
    flat = x.contiguous().view(planes, plane)
    if flat.numel() == 0:
        return x.new_empty(x.shape, dtype=torch.uint8), x.new_zeros(planes, 2)
    low = flat.amin(1) + 0.0  # no -0.0
    step = _steps(flat.amax(1) - low)
    largest = torch.finfo(x.dtype).max
    good = (step * 255 <= largest) & (low + step * 255 <= largest)
    scale = torch.where(step > 0, step.reciprocal() * 2**_PLACES, 0)
    fixed = (flat - low.unsqueeze(1)).mul_(scale.unsqueeze(1))
    fixed.masked_fill_(~good.unsqueeze(1), 0)
    codes = fixed.to(torch.int32).add_(2 ** (_PLACES - 1)) >> _PLACES
    levels = torch.stack((low, step), 1).masked_fill_(~good.unsqueeze(1), torch.nan)
    return codes.to(torch.uint8).view(x.shape), levels


def _steps(spans: Tensor) -> Tensor:
    """Divide by 255; round float32 up to 16 significant bits, so that codes times it are exact."""
    steps = spans * (1 / 255)
    if steps.dtype == torch.float32:
        steps = ((steps.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)
    # NaN stays what it is.
    return torch.where(spans == 0, 0, steps.clamp(min=LEAST_STEP))


def dequantise(codes: Tensor, levels: Tensor) -> Tensor:
    """Return what codes and levels stand for, of the levels' type."""
    check_quantised(codes, levels)
    planes, plane = plane_sizes(codes.shape)
    low, step = levels.unsqueeze(2).unbind(1)
    flat = codes.contiguous().view(planes, plane).to(levels.dtype)
    return flat.mul_(step).add_(low).view(codes.shape)


def pack_nonzeros(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bits, values and starts; see :func:`mest_fed.kernels.compact.pack_nonzeros`."""
    images, elements = image_sizes(x.shape)
    flat = x.contiguous().view(images, elements)
    active = flat != 0
    starts = x.new_zeros(images + 1, dtype=torch.int64)
    torch.cumsum(active.sum(1), 0, out=starts[1:])
    padded = torch.nn.functional.pad(active, (0, bytes_of(elements) * 8 - elements))
    ones = padded.view(images, bytes_of(elements), 8).to(torch.uint8)
    bits = (ones << _places(x.device)).sum(2, dtype=torch.uint8)
    return bits, flat[active], starts


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def unpack_nonzeros(
    packed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> Tensor:
    """Return the images ``first`` to ``last`` of a packed tensor of ``shape``.

    Raises
    ------
    ValueError
        If types, shapes, or bits and starts of these images do not fit each other.
    """
    check_packed(packed, shape, first, last)
    bits, values, starts = packed
    _, elements = image_sizes(shape)
    ones = (bits[first:last].unsqueeze(2) >> _places(bits.device)) & 1
    active = ones.view(last - first, bytes_of(elements) * 8).bool()
    if bool(active[:, elements:].any()):
        raise ValueError("bits of an image go on after its last element")
    active = active[:, :elements]
    counts = starts[first : last + 1].diff()
    ends = int(starts[0]), int(starts[-1])
    if ends != (0, len(values)) or bool((counts < 0).any()):
        raise ValueError("starts must rise, from 0 to the number of values")
    if not torch.equal(active.sum(1), counts):
        raise ValueError("bits of an image must be as many as starts say")
    x = values.new_zeros(last - first, elements)
    x[active] = values[int(starts[first]) : int(starts[last])]
    return x.view(last - first, *shape[1:])
