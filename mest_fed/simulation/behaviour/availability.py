"""When devices are there: the request, and the answers that need no clock."""

import bisect
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

from mest_fed.config.behaviour import BehaviourSection
from mest_fed.devices import DeviceProfile
from mest_fed.rng import numpy_generator

Interval = tuple[float, float]


@runtime_checkable
class Availability(Protocol):
    """When each device is there. Devices are numbered by partition; times are virtual seconds.

    A pure function of device and time: nothing is kept, so any device can be asked about any time.
    """

    def present(self, device: int, time: float) -> bool:
        """Whether the device is there."""

    def leaves(self, device: int, time: float) -> float:
        """Return the first moment from ``time`` on at which it is away, or infinity."""

    def returns(self, device: int, time: float) -> float:
        """Return the first moment from ``time`` on at which it is there, or infinity."""


class Always:
    """All devices are there all the time."""

    def present(self, device: int, time: float) -> bool:
        """Return True."""
        del device, time
        return True

    def leaves(self, device: int, time: float) -> float:
        """Return infinity."""
        del device, time
        return math.inf

    def returns(self, device: int, time: float) -> float:
        """Return ``time``."""
        del device
        return time


class ByChance(Always):
    """Devices are asked at any time, and answer by chance, as likely as their profile says.

    Parameters
    ----------
    seed : int
        Seed of the run.
    profile_of : callable
        Partition -> its device.
    """

    def __init__(self, seed: int, profile_of: Callable[[int], DeviceProfile]) -> None:
        self._seed = seed
        self._profile_of = profile_of

    def answers(self, device: int, number: int) -> bool:
        """Draw whether a device answers an instruction, from (seed, number, device)."""
        chance = numpy_generator(self._seed, "availability", number, device).random()
        return bool(chance < self._profile_of(device).availability)


class Periods:
    """Availability by intervals ``[start, end)`` that each lie within one period of a device.

    Subclasses say where periods begin and give the intervals of each. Intervals that touch, also
    from one period to the next, are one.

    Attributes
    ----------
    limit : int
        Periods to look ahead; what does not change within them never does.
    """

    limit = 366

    def begins(self, device: int, period: int) -> float:
        """Return when a device's period begins; the next one begins where it ends."""
        raise NotImplementedError

    def intervals(self, device: int, period: int) -> Sequence[Interval]:
        """Return the intervals of a period: in order, apart, none empty."""
        raise NotImplementedError

    def period_at(self, device: int, time: float) -> int:
        """Return the period that holds a moment, or one next to it."""
        raise NotImplementedError

    def present(self, device: int, time: float) -> bool:
        """Whether the device is there."""
        return self._find(device, self._period(device, time), time)[1]

    def leaves(self, device: int, time: float) -> float:
        """Return the first moment from ``time`` on at which it is away, or infinity."""
        first = self._period(device, time)
        for period in range(first, first + self.limit + 1):
            index, inside = self._find(device, period, time)
            if not inside:
                return time
            for start, end in self.intervals(device, period)[index:]:
                if start > time:
                    return time
                time = end
        return math.inf

    def returns(self, device: int, time: float) -> float:
        """Return the first moment from ``time`` on at which it is there, or infinity."""
        first = self._period(device, time)
        for period in range(first, first + self.limit + 1):
            index, inside = self._find(device, period, time)
            if inside:
                return time
            intervals = self.intervals(device, period)
            if index < len(intervals):
                return intervals[index][0]
        return math.inf

    def _period(self, device: int, time: float) -> int:
        period = self.period_at(device, time)
        while time < self.begins(device, period):
            period -= 1
        while time >= self.begins(device, period + 1):
            period += 1
        return period

    def _find(self, device: int, period: int, time: float) -> tuple[int, bool]:
        """Return the first interval that ends after ``time``, and whether it has begun."""
        intervals = self.intervals(device, period)
        index = bisect.bisect_right(intervals, time, key=lambda interval: interval[1])
        return index, index < len(intervals) and intervals[index][0] <= time


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


def diurnal(
    behaviour: BehaviourSection, seed: int, profile_of: Callable[[int], DeviceProfile]
) -> Diurnal:
    """Return one interval a day whose mean length is the profile's availability."""
    return Diurnal(
        seed,
        lambda device: profile_of(device).availability,
        spread=behaviour.phase_spread,
        purpose="availability",
    )


def plugged_diurnally(behaviour: BehaviourSection, seed: int) -> Diurnal:
    """Return one interval a day, of mean length ``behaviour.plugged``, of being plugged in."""
    return Diurnal(
        seed, lambda _: behaviour.plugged, spread=behaviour.phase_spread, purpose="charging"
    )


def never_plugged() -> None:
    """Return nothing: no device is ever plugged in."""


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
