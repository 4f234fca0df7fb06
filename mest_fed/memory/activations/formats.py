"""How an activation stands in memory between forward and backward.

A format packs a float tensor of at least two dimensions, images first, and gives back all of it or
some images.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from mest_fed.errors import MestFedError
from mest_fed.kernels.compact import dequantise, expand, quantise, squeeze


def packable(x: Tensor) -> bool:
    """Whether a tensor is of numbers that every format packs; others stay as they are."""
    return x.dtype in (torch.float32, torch.float64)


class Packed(ABC):
    """A packed activation."""

    def __init__(self, x: Tensor) -> None:
        self.shape = x.shape

    @abstractmethod
    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last) as they were, or nearly so; a new or a shared tensor."""

    def whole(self) -> Tensor:
        """Return all images."""
        return self.images(0, self.shape[0])


class AsIs(Packed):
    """Exact: the tensor itself, of any type and number of dimensions, which must stay as it is."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self._x, self._version = x.detach(), x._version

    def images(self, first: int, last: int) -> Tensor:
        """Return the images [first, last), of the same memory."""
        return self.whole()[first:last]

    def whole(self) -> Tensor:
        """Return the tensor, or say that it is not what it was."""
        if self._x._version != self._version:  # autograd does not look where others keep tensors
            raise MestFedError(
                f"an activation of shape {tuple(self.shape)} was changed in place after it was "
                "kept for backward"
            )
        return self._x


class _Half(Packed):
    """16 bits. What leaves float16's range is held to its ends; NaN stays NaN."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        super().__init__(x)
        self._dtype = x.dtype
        if dtype == torch.float16:
            most = torch.finfo(dtype).max
            x = x.detach().clamp(-most, most)
        self._x = x.detach().to(dtype)

    def images(self, first: int, last: int) -> Tensor:
        return self._x[first:last].to(self._dtype)


class _Bytes(Packed):
    """8 bits, one affine scale for each channel of each image: off by half a step at most."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self._codes, self._levels = quantise(x.detach().contiguous())
        self._planes = len(self._levels) // max(1, x.shape[0])

    def images(self, first: int, last: int) -> Tensor:
        levels = self._levels[first * self._planes : last * self._planes]
        return dequantise(self._codes[first:last], levels)


class _Nonzero(Packed):
    """Exact: a bit for each element, and the values that are not zero; for what left a ReLU."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self._bits, self._values, self._starts = squeeze(x.detach().contiguous())

    def images(self, first: int, last: int) -> Tensor:
        return expand(self._bits, self._values, self._starts, self.shape, first=first, last=last)


#: Formats by name, the exact ones first.
FORMATS: dict[str, Callable[[Tensor], Packed]] = {
    "fp32": AsIs,
    "mask": _Nonzero,
    "fp16": lambda x: _Half(x, torch.float16),
    "bf16": lambda x: _Half(x, torch.bfloat16),
    "int8": _Bytes,
}
EXACT = ("fp32", "mask")
