"""Unstructured sparsity: a granule is one weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mest_fed.kernels import Strips
from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class Unstructured(Layout):
    """One weight a granule."""

    @property
    def num_granules(self) -> int:
        """One for each weight."""
        return self.num_weights

    @property
    def width(self) -> int:
        """One value."""
        return 1

    @property
    def cut(self) -> Strips:
        """Strips of one row."""
        return Strips(1)

    def positions(self, slots: Tensor) -> Tensor:
        """Return the slots themselves: granules are numbered as the flattened weight is."""
        return slots.long().unsqueeze(1)

    def best_slots(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Return every slot and its magnitude."""
        return torch.arange(self.num_slots, device=dense.device), dense.abs().reshape(-1)
