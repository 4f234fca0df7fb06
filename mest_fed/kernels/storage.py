"""How slots and values stand for the weights of a compact weight. Needs no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Strips:
    """Granules are strips of ``rows`` consecutive output channels at one column.

    slot = strip * columns + column, of the weight seen as a matrix (out, in * taps).
    """

    rows: int = 1


@dataclass(frozen=True)
class Kernels:
    """Granules are kernels that keep some of their taps; ``cells`` lists them for each variant.

    slot = (out * in_channels + in) * variants + variant.
    """

    cells: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Channels:
    """Granules are whole channels along one axis of the weight; slot = channel."""

    axis: Literal["out", "in"]


StorageFormat = Strips | Kernels | Channels


def size_of(shape: tuple[int, ...]) -> int:
    """Multiply a shape out, by no function of ``math``.

    ``torch.fx`` replaces those while it traces. ``torch.compile`` does not know them afterwards
    if it was first needed within a trace.
    """
    size = 1
    for it in shape:
        size *= it
    return size
