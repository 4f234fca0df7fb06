"""Compact storage by torch's own operators: for any device, and for other floats than float32.

Every step is exact or rounded once, so float32 has the bits of the compiled kernels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mest_fed.kernels.compact_shapes import (
    bytes_of,
    check_quantised,
    check_squeezed,
    image_sizes,
    plane_sizes,
)

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


def squeeze(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bits, values and starts; see :func:`mest_fed.kernels.compact.squeeze`."""
    images, elements = image_sizes(x.shape)
    flat = x.contiguous().view(images, elements)
    live = flat != 0
    starts = x.new_zeros(images + 1, dtype=torch.int64)
    torch.cumsum(live.sum(1), 0, out=starts[1:])
    padded = torch.nn.functional.pad(live, (0, bytes_of(elements) * 8 - elements))
    ones = padded.view(images, bytes_of(elements), 8).to(torch.uint8)
    bits = (ones << _places(x.device)).sum(2, dtype=torch.uint8)
    return bits, flat[live], starts


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def expand(
    squeezed: tuple[Tensor, Tensor, Tensor], shape: Sequence[int], first: int, last: int
) -> Tensor:
    """Return the images ``first`` to ``last`` of a squeezed tensor of ``shape``.

    Raises
    ------
    ValueError
        If types, shapes, or bits and starts of these images do not fit each other.
    """
    check_squeezed(squeezed, shape, first, last)
    bits, values, starts = squeezed
    _, elements = image_sizes(shape)
    ones = (bits[first:last].unsqueeze(2) >> _places(bits.device)) & 1
    live = ones.view(last - first, bytes_of(elements) * 8).bool()
    if bool(live[:, elements:].any()):
        raise ValueError("bits of an image go on after its last element")
    live = live[:, :elements]
    counts = starts[first : last + 1].diff()
    ends = int(starts[0]), int(starts[-1])
    if ends != (0, len(values)) or bool((counts < 0).any()):
        raise ValueError("starts must rise, from 0 to the number of values")
    if not torch.equal(live.sum(1), counts):
        raise ValueError("bits of an image must be as many as starts say")
    x = values.new_zeros(last - first, elements)
    x[live] = values[int(starts[first]) : int(starts[last])]
    return x.view(last - first, *shape[1:])
