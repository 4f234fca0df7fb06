"""A round's row as named numbers."""

import math
from collections.abc import Mapping
from typing import Any


def metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a round's row, those of nested tables as ``table/key``.

    ``round`` is left out: it is the step at which the others are logged.
    """
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": number for name, number in metrics(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value) and key != "round":
            flat[key] = float(value)
    return flat
