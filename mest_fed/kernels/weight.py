"""What a kernel needs to know of a compact weight beside its values."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mest_fed.kernels.storage import Kernels, StorageFormat, Strips, size_of


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, padding and dilation of a 2-D convolution (groups = 1)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def out_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the output for those of the input."""
        height, width = (
            (side + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for side, taps, stride, padding, dilation in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


@dataclass(frozen=True)
class SparseWeight:
    """One layer's weight, without its values.

    Parameters
    ----------
    shape : tuple of int
        Shape of the dense weight, (out, in, kh, kw) or (out, in).
    slots : Tensor
        int32, the active granules, strictly increasing.
    storage : Strips, Kernels or Channels
        How slots and values stand for weights.
    positions : callable
        Computes where the values stand in the flattened dense weight, int64 of the values' shape.
    on_dense_gradient : callable or None
        Receives the dense weight gradient for the moment that it exists; asking for it makes
        the layer compute one.
    """

    shape: tuple[int, ...]
    slots: Tensor
    storage: StorageFormat
    positions: Callable[[], Tensor]
    on_dense_gradient: Callable[[Tensor], None] | None = None

    @property
    def density(self) -> float:
        """Active weights / weights; padding counts as active."""
        if isinstance(self.storage, Strips):
            width = self.storage.rows
        elif isinstance(self.storage, Kernels):
            width = len(self.storage.cells[0])
        else:
            return len(self.slots) / self.shape[0 if self.storage.axis == "out" else 1]
        return min(1.0, len(self.slots) * width / size_of(self.shape))

    def compact(self, gradient: Tensor, at: Tensor) -> Tensor:
        """Read the active values' gradient at positions of a dense one."""
        if self.on_dense_gradient is not None:
            self.on_dense_gradient(gradient)
        return gather(gradient, at)


def scatter(values: Tensor, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Build the dense weight of ``shape`` with ``values`` at flat ``positions``.

    A position one past the end is padding and is left out.
    """
    flat = values.new_zeros(size_of(shape) + 1)
    flat[positions] = values
    return flat[:-1].view(shape)


def gather(dense: Tensor, positions: Tensor) -> Tensor:
    """Read a dense tensor at flat ``positions``; padding reads zero."""
    flat = dense.reshape(-1)
    padding = positions >= len(flat)
    return flat[positions.clamp(max=len(flat) - 1)].masked_fill_(padding, 0)
