"""Channel sparsity: a granule is one channel with everything that feeds on it.

A channel is made by a row of one weight (its output side) and read by a column of the next (its
input side). Two layers that face each other share one mask, so that a dead channel is absent from
both: the first layer's granules lie on ``axis="out"``, the second's on ``axis="in"``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mest_fed.kernels import Channels
from mest_fed.sparsity.layout import Layout


@dataclass(frozen=True)
class Channel(Layout):
    """One output channel (``axis="out"``) or input channel (``axis="in"``) a granule."""

    axis: Literal["out", "in"] = "out"

    @property
    def num_granules(self) -> int:
        """Channels along the axis."""
        return self.shape[0] if self.axis == "out" else self.shape[1]

    @property
    def width(self) -> int:
        """All weights of one channel."""
        return self.num_weights // self.num_granules

    @property
    def cut(self) -> Channels:
        """Whole channels."""
        return Channels(self.axis)

    def positions(self, slots: Tensor) -> Tensor:
        """Return positions of shape ``(n, width)``, row-major within the channel."""
        slots = slots.long().unsqueeze(1)
        if self.axis == "out":
            return slots * self.width + torch.arange(self.width, device=slots.device)
        kernel = self.num_weights // (self.shape[0] * self.shape[1])
        outputs = torch.arange(self.shape[0], device=slots.device) * (self.shape[1] * kernel)
        cells = torch.arange(kernel, device=slots.device)
        within = (outputs.unsqueeze(1) + cells).reshape(-1)
        return slots * kernel + within
