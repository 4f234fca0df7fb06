"""When devices are there: the question, and the answers that need no clock."""

import bisect
import math
from collections.abc import Sequence
from typing import Protocol

Interval = tuple[float, float]


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
