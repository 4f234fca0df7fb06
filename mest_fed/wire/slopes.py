"""An update as the slopes of its steps, where training goes forward alone: 4 bytes a direction.

Who holds what was sent can repeat the steps (:mod:`mest_fed.training.directions`), so neither
weights nor masks travel (DeComFL: Li et al., ICLR 2025, arXiv 2405.15861).
"""

from collections.abc import Sequence

import numpy as np

from mest_fed.errors import WireError
from mest_fed.wire.payload import Payload

SLOPES = "slopes"


def write_slopes(slopes: Sequence[float]) -> Payload:
    """Write slopes; what would be empty is absent."""
    return Payload({SLOPES: np.array(slopes, "<f4")} if slopes else {}, b"")


def read_slopes(payload: Payload, directions: int, most_steps: int) -> list[float]:
    """Read slopes.

    Parameters
    ----------
    payload : Payload
        The message; none of it is believed.
    directions : int
        Of a step.
    most_steps : int
        How many may have been taken.

    Raises
    ------
    WireError
        If there is anything else, a slope that is not finite, part of a step, or too many of them.
    """
    arrays = payload.arrays
    if payload.header or not arrays.keys() <= {SLOPES}:
        said = f"a header of {len(payload.header)} bytes and arrays {sorted(arrays)}"
        raise WireError(f"{said} instead of slopes alone")
    slopes = arrays.get(SLOPES, np.zeros(0, "<f4"))
    if slopes.dtype != np.dtype("<f4") or slopes.ndim != 1:
        raise WireError(f"slopes of type {slopes.dtype} and shape {slopes.shape}")
    if len(slopes) % directions or len(slopes) > directions * most_steps:
        raise WireError(
            f"{len(slopes)} slopes; allowed: {directions} each of at most {most_steps} steps"
        )
    if not np.isfinite(slopes).all():
        raise WireError("a slope is not finite")
    found: list[float] = slopes.tolist()
    return found
