"""Block sparsity: a granule is a strip of consecutive output channels at one input position.

MEST's "block" scheme cuts the weight, seen as a matrix of shape (out, in * kh * kw), into strips of
4 rows by 1 column. Here the number of rows is free, and need not divide the output channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mest_fed.errors import not_allowed
from mest_fed.kernels import Strips
from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class Block(Layout):
    """``rows`` consecutive output channels at one column of the (out, in * kh * kw) matrix.

    The last strip of a weight whose output channels ``rows`` does not divide is padded: its
    surplus values stay zero, and no count includes them.
    """

    rows: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise not_allowed("block rows", self.rows, "a whole number of at least 1")

    @property
    def columns(self) -> int:
        """Columns of the (out, in * kh * kw) matrix."""
        return self.num_weights // self.shape[0]

    @property
    def num_granules(self) -> int:
        """Strips, incomplete ones included."""
        return -(-self.shape[0] // self.rows) * self.columns

    @property
    def width(self) -> int:
        """``rows`` values."""
        return self.rows

    @property
    def cut(self) -> Strips:
        """Strips of ``rows``."""
        return Strips(self.rows)

    def positions(self, slots: Tensor) -> Tensor:
        """Return positions of shape ``(n, rows)``: slot = strip * columns + column."""
        slots = slots.long()
        strip, column = slots // self.columns, slots % self.columns
        row = strip.unsqueeze(1) * self.rows + torch.arange(self.rows, device=slots.device)
        inside = row < self.shape[0]
        return torch.where(inside, row * self.columns + column.unsqueeze(1), self.num_weights)

    def live_weights(self, slots: Tensor) -> int:
        """Count the weights of slots; an incomplete strip counts what it has."""
        missing = -self.shape[0] % self.rows
        last = self.num_granules - self.columns
        return len(slots) * self.rows - missing * int((slots >= last).sum())

    def best_slots(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Return every strip and its L2 norm."""
        if self.shape[0] % self.rows:
            return super().best_slots(dense)
        strips = dense.reshape(-1, self.rows, self.columns)
        norms = torch.linalg.vector_norm(strips, dim=1).reshape(-1)
        return torch.arange(self.num_slots, device=dense.device), norms
