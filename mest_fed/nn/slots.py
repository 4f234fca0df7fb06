"""Tensors at the slots of a layout: what a dense weight has there, and the weight that has it."""

from torch import Tensor

from mest_fed.kernels import gather, scatter
from mest_fed.sparsity import Layout


def gathered(layout: Layout, dense: Tensor, slots: Tensor) -> Tensor:
    """Return the values of slots, shape ``(n, width)``, from a dense weight; padding is zero."""
    positions: Tensor = layout.positions(slots)
    return gather(dense, positions)


def scattered(layout: Layout, values: Tensor, slots: Tensor) -> Tensor:
    """Return the dense weight that holds ``values`` at ``slots`` and zero elsewhere."""
    positions: Tensor = layout.positions(slots)
    return scatter(values, positions, layout.shape)
