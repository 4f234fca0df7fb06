"""Learning rates as functions of training progress."""

import math
from collections.abc import Callable

from mest_fed.errors import not_allowed


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    """MEST anneals to 4e-8, here to zero."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _step(progress: float) -> float:
    """Tenth at half, hundredth at three quarters (He et al. 2016)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


RATES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}


def learning_rate(schedule: str, base: float, progress: float) -> float:
    """Return the learning rate at a progress in [0, 1].

    Raises
    ------
    InputError
        If the schedule is unknown.
    """
    if schedule not in RATES:
        raise not_allowed("training.schedule", schedule, RATES)
    return base * RATES[schedule](progress)
