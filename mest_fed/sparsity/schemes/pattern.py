"""Pattern sparsity: a granule is one 3x3 kernel that keeps 4 of its 9 weights.

Each live kernel has one of eight patterns; which kernels live (connectivity) is balanced over the
output filters. The patterns are those of the MEST release: four corners of 2x2, one edge without
the centre, and three crosses with one arm cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mest_fed.errors import InputError
from mest_fed.kernels import Kernels
from mest_fed.sparsity.layout import Layout

#: Kept cells of each pattern, as ``row * 3 + column``.
PATTERNS = (
    (4, 5, 7, 8),
    (3, 4, 6, 7),
    (1, 2, 4, 5),
    (0, 1, 3, 4),
    (5, 6, 7, 8),
    (3, 4, 5, 7),
    (1, 4, 5, 7),
    (1, 3, 4, 7),
)


@dataclass(frozen=True)
class Pattern(Layout):
    """One 3x3 kernel a granule, eight variants, four values."""

    variants = len(PATTERNS)

    def __post_init__(self) -> None:
        if self.shape[2:] != (3, 3):
            raise InputError(f"the pattern scheme needs 3x3 kernels, not a weight of {self.shape}")

    @property
    def num_granules(self) -> int:
        """One for each (output, input) channel pair."""
        return self.shape[0] * self.shape[1]

    @property
    def width(self) -> int:
        """Four values."""
        return 4

    @property
    def num_groups(self) -> int:
        """Live kernels are balanced over the output filters."""
        return self.shape[0]

    @property
    def max_density(self) -> float:
        """All kernels live: 4/9."""
        return 4 / 9

    @property
    def cut(self) -> Kernels:
        """Kernels of four taps."""
        return Kernels(PATTERNS)

    def positions(self, slots: Tensor) -> Tensor:
        """Return positions of shape ``(n, 4)``: slot = (out * in_channels + in) * 8 + pattern."""
        slots = slots.long()
        cells = torch.tensor(PATTERNS, device=slots.device)
        return (slots // self.variants * 9).unsqueeze(1) + cells[slots % self.variants]
