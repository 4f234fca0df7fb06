"""A sparse-training method of your own: drop what the loss would miss least, grow at random."""

import numpy as np
import numpy.typing as npt

from mest_fed import Bounds, Method

Array = npt.NDArray[np.float32]


class Taylor(Method):
    """Importance by first-order Taylor expansion (Molchanov et al. 2017): |w g|.

    Each mutation replaces a share of the active weights, which falls from 30% to nothing.
    """

    def bounds(self, progress: float) -> Bounds:
        """Return how far a mutation shrinks and grows the mask, as multiples of the target."""
        return Bounds(floor=1 - 0.3 * (1 - progress), ceiling=1.0)

    def importance(self, values: Array, gradients: Array | None) -> Array:
        """Return a score for each active granule; values have shape (granules, weights in one)."""
        if gradients is None:  # masks that mutate on the server: magnitude, as the base class
            return super().importance(values, gradients)
        return np.abs((values * gradients).sum(axis=1))
