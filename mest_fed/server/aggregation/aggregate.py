"""What a round's updates come to, whatever the rule: what the strategy and the model see of it."""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mest_fed.sparsity.arrays import Floats, Slots
from mest_fed.sparsity.state import SparseState


class LayerAggregate(Protocol):
    """What the updates of one sparse layer come to, over its flattened dense weight."""

    def mean(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the aggregate where a client held the weight, zero elsewhere; where that is."""

    def dropped(self) -> npt.NDArray[np.bool_]:
        """Return where clients were offered the weight and none of them held it in the end."""


class Aggregate(Protocol):
    """What a round's updates come to.

    Attributes
    ----------
    weight : float
        0 if there was no update.
    """

    weight: float

    @property
    def layers(self) -> Mapping[str, LayerAggregate]:
        """Sparse layer -> its aggregate."""

    def add(
        self,
        state: SparseState,
        weight: float,
        offered: Mapping[str, Slots] | None = None,
        untrained: Collection[str] = (),
    ) -> None:
        """Add one client's state; see :meth:`MaskedMean.add`."""

    def dense_mean(self) -> Mapping[str, Floats]:
        """Return the aggregate of every dense tensor that a client trained.

        Where no client held a weight of it, it means nothing.
        """

    def dense_held(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Return where clients held a dense tensor, of those that narrower models hold in part."""
