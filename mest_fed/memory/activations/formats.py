"""How an activation stands in memory between forward and backward.

A format packs a float tensor of at least two dimensions, images first, and gives back all of it or
some images.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from mest_fed.errors import MestFedError
from mest_fed.kernels.compact import dequantise, expand, quantise, squeeze


def packable(x: Tensor) -> bool:
    """Whether a tensor is of numbers that every format packs; others stay as they are."""
    return x.dtype in (torch.float32, torch.float64)


class Packed(ABC):
    """A packed activation.

    Attributes
    ----------
    shape, dtype
        Of the activation.
    parts : tuple of Tensor
        What is in memory.
    """

    def __init__(self, x: Tensor, *parts: Tensor) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        self.parts = parts

    def made_of(self, *parts: Tensor) -> Self:
        """Return the same activation with these parts."""
        other = copy.copy(self)
        other.parts = parts
        return other

    @abstractmethod
    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last) as they were, or nearly so; a new or a shared tensor."""

    def whole(self) -> Tensor:
        """Return all images."""
        return self.images(0, self.shape[0])


class AsIs(Packed):
    """Exact: the tensor itself, of any type and number of dimensions, which must stay as it is."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, x.detach())
        self._version = x._version

    def made_of(self, *parts: Tensor) -> Self:
        """Return the same activation with these parts, which must stay as they are from now on."""
        other = super().made_of(*parts)
        other._version = parts[0]._version if parts else 0
        return other

    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last), of the same memory."""
        return self.whole()[first:last]

    def whole(self) -> Tensor:
        """Return the tensor, or say that it is not what it was."""
        (x,) = self.parts
        if x._version != self._version:  # autograd does not look where others keep tensors
            raise MestFedError(
                f"a tensor of shape {tuple(self.shape)} was changed in place after it was kept for "
                "backward"
            )
        return x


class _Half(Packed):
    """16 bits. What leaves float16's range is held to its ends; NaN stays NaN."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        short = x.detach()
        if dtype == torch.float16:
            most = torch.finfo(dtype).max
            short = short.clamp(-most, most)
        super().__init__(x, short.to(dtype))

    def images(self, first: int, last: int) -> Tensor:
        return self.parts[0][first:last].to(self.dtype)


class _Bytes(Packed):
    """8 bits, one affine scale for each channel of each image: off by half a step at most."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, *quantise(x.detach().contiguous()))

    def images(self, first: int, last: int) -> Tensor:
        codes, levels = self.parts
        planes = len(levels) // max(1, self.shape[0])
        return dequantise(codes[first:last], levels[first * planes : last * planes])


class _Nonzero(Packed):
    """Exact: a bit for each element, and the values that are not zero; for what left a ReLU."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x, *squeeze(x.detach().contiguous()))

    def images(self, first: int, last: int) -> Tensor:
        bits, values, starts = self.parts
        return expand(bits, values, starts, self.shape, first=first, last=last)


def _bytes(x: Tensor) -> Packed:
    """Pack in 8 bits; an attention mask has infinities, which no scale holds, and stays."""
    packed = _Bytes(x)
    levels = packed.parts[1]
    bounded = levels.is_meta or not bool(levels.isnan().any()) or bool(x.isnan().any())
    return packed if bounded else AsIs(x)


#: Formats by name, the exact ones first.
FORMATS: dict[str, Callable[[Tensor], Packed]] = {
    "fp32": AsIs,
    "mask": _Nonzero,
    "fp16": lambda x: _Half(x, torch.float16),
    "bf16": lambda x: _Half(x, torch.bfloat16),
    "int8": _bytes,
}
EXACT = ("fp32", "mask")
