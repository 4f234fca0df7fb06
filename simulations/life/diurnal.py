"""Owners' days: one drawn interval a day, around each device's own midnight."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from mest_fed.rng import numpy_generator
from simulations.life.availability import Interval, Periods

DAY = 86400.0

#: A day's length is Beta(a c, (1 - a) c) of a day: mean a, standard deviation
#: sqrt(a (1 - a) / (c + 1)), for a = 0.5 a sixth of a day.
_CONCENTRATION = 8.0
#: Where it lies in what is left of the day is Beta(b, b): symmetric around midnight.
_REGULARITY = 5.0


class Diurnal(Periods):
    """One interval a day, whose length and place are drawn from (seed, purpose, device, day).

    A device's day lasts from its noon to the next; the interval lies around its midnight, when the
    owner sleeps. Virtual time 0 is midnight of the reference time zone, and each device's midnight
    is later by a drawn phase. The model is our own. Its shape follows what Bonawitz et al.
    (MLSys'19, "Towards Federated Learning at Scale") report of phones, which take part while idle,
    plugged in and on free networks: mostly at night.

    Parameters
    ----------
    seed : int
        Seed of the run.
    share : callable
        Device -> mean share of the day that the intervals cover, in [0, 1].
    spread : float
        Share of a day over which midnights spread, uniformly.
    purpose : str
        What the intervals are. Phases do not depend on it: a device's owner has one midnight.
    """

    def __init__(
        self, seed: int, share: Callable[[int], float], *, spread: float, purpose: str
    ) -> None:
        self._seed = seed
        self._share = share
        self._spread = spread
        self._purpose = purpose

    def begins(self, device: int, period: int) -> float:
        """Return a noon of the device."""
        return self._noon(device) + period * DAY

    def period_at(self, device: int, time: float) -> int:
        """Return the day that holds a moment."""
        return math.floor((time - self._noon(device)) / DAY)

    def intervals(self, device: int, period: int) -> Sequence[Interval]:
        """Return the day's interval, if it has any."""
        first, last = self.begins(device, period), self.begins(device, period + 1)
        share = self._share(device)
        if share >= 1:
            return [(first, last)]
        before, length = _drawn_day(self._seed, self._purpose, device, period, share)
        start = first + before * DAY
        end = last if before + length >= 1 else min(last, first + (before + length) * DAY)
        return [(start, end)] if start < end else []

    def _noon(self, device: int) -> float:
        return _phase(self._seed, device) * self._spread * DAY - DAY / 2


@lru_cache(maxsize=1 << 16)
def _phase(seed: int, device: int) -> float:
    return float(numpy_generator(seed, "phase", device).random())


@lru_cache(maxsize=1 << 16)
def _drawn_day(seed: int, purpose: str, device: int, day: int, share: float) -> tuple[float, float]:
    """Return the shares of a day before the interval, and of the interval."""
    if share <= 0:
        return 0.0, 0.0
    generator = numpy_generator(seed, purpose, device, day)
    place = float(generator.beta(_REGULARITY, _REGULARITY))
    length = float(generator.beta(share * _CONCENTRATION, (1 - share) * _CONCENTRATION))
    return place * (1 - length), length
