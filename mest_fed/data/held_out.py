"""A client's own held-out share."""

import numpy as np

from mest_fed.data.images import Indices
from mest_fed.errors import not_allowed


def hold_out(
    indices: Indices, fraction: float, generator: np.random.Generator
) -> tuple[Indices, Indices]:
    """Split a partition into examples to train on and examples held out for evaluation.

    Parameters
    ----------
    indices : int64 array
        The partition.
    fraction : float
        Share to hold out, in [0, 1); rounded, and at least one example stays to train on.
    generator : numpy.random.Generator
        Decides which.

    Returns
    -------
    train, held : int64 array
        In the order of ``indices``.

    Raises
    ------
    InputError
        If the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise not_allowed("data.hold_out", fraction, "a number in [0, 1)")
    count = num_held_out(len(indices), fraction)
    is_held = np.zeros(len(indices), dtype=bool)
    is_held[generator.permutation(len(indices))[:count]] = True
    return indices[~is_held], indices[is_held]


def num_held_out(examples: int, fraction: float) -> int:
    """Return how many of a partition's examples :func:`hold_out` holds out."""
    return max(0, min(round(fraction * examples), examples - 1))
