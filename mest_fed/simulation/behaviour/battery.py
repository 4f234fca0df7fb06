"""Batteries in closed form: a charge is worked out when it is asked for. All of it is modelled."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from mest_fed.devices import DeviceProfile
from mest_fed.rng import numpy_generator
from mest_fed.simulation.behaviour.availability import DAY, Periods

ProfileOf = Callable[[int], DeviceProfile]

#: Where a device that charges begins, so that its charge at 0 follows its owner's days.
_BEFORE = -2 * DAY


class Batteries:
    """The charge of each device that has a battery.

    Waiting drains the profile's idle power, rounds what they take; while it is plugged in, the
    device gets ``charge_watts``. Only devices that have taken part are kept, with their charge at
    the end of it: the time since then is worked out from the owner's days, and from no more of them
    than have passed since the last full charge. A device that never took part begins with a drawn
    charge, uniform between empty and full: at time 0 if it never charges, else two days before.

    Parameters
    ----------
    profile_of : callable
        Partition -> its device.
    seed : int
        Seed of the run.
    plugged : Periods or None
        When devices are plugged in; None for never.
    """

    def __init__(self, profile_of: ProfileOf, seed: int, plugged: Periods | None) -> None:
        self._profile_of = profile_of
        self._seed = seed
        self._plugged = plugged
        self._charges: dict[int, tuple[float, float]] = {}

    def joules(self, device: int, time: float) -> float:
        """Return the charge at a time; infinite on mains power.

        Times before the end of the device's last round give the charge at that end.
        """
        profile = self._profile_of(device)
        if profile.battery_joules is None:
            return math.inf
        since, charge = self._charges.get(device) or self._beginning(device)
        return self._after(device, charge, (since, max(since, time)), profile.idle_watts)

    def share(self, device: int, time: float) -> float | None:
        """Return the charge as a share of a full battery, or None on mains power."""
        full = self._profile_of(device).battery_joules
        return None if full is None else self.joules(device, time) / full

    def is_plugged(self, device: int, time: float) -> bool:
        """Whether the device is plugged in."""
        return self._plugged is not None and self._plugged.present(device, time)

    def spend(self, device: int, start: float, seconds: float, joules: float) -> None:
        """Drain what a round has taken from ``start`` on; the battery charges meanwhile if it can.

        Does nothing on mains power.
        """
        if self._profile_of(device).battery_joules is None:
            return
        charge, end = self.joules(device, start), start + seconds
        if end > start:
            charge = self._after(device, charge, (start, end), joules / (end - start))
        self._charges[device] = (end, charge)

    def state(self) -> dict[str, npt.NDArray[np.float64 | np.int64]]:
        """Return the charges of all devices that took part, for a checkpoint."""
        devices = sorted(self._charges)
        charges = [self._charges[device] for device in devices]
        return {
            "battery.devices": np.array(devices, np.int64),
            "battery.charges": np.array(charges, np.float64).reshape(-1, 2),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.float64 | np.int64]]) -> None:
        """Take back what :meth:`state` gave."""
        rows = zip(state["battery.devices"], state["battery.charges"], strict=True)
        self._charges = {int(device): (float(at), float(joules)) for device, (at, joules) in rows}

    def _beginning(self, device: int) -> tuple[float, float]:
        full = self._profile_of(device).battery_joules or 0.0
        drawn = float(numpy_generator(self._seed, "battery", device).random())
        return (0.0 if self._plugged is None else _BEFORE), drawn * full

    def _after(self, device: int, charge: float, span: tuple[float, float], watts: float) -> float:
        """Return the charge at the end of a span in which the device draws ``watts``."""
        profile = self._profile_of(device)
        full, rising = profile.battery_joules or 0.0, (profile.charge_watts or 0.0) - watts
        start, end = span
        plugged: list[tuple[float, float]] = []
        for first, last in self._plugged_before(device, span):
            plugged.append((first, last))
            if rising * (last - first) >= full:  # full at its end whatever was before it
                start, charge = last, full
                plugged.pop()
                break
        for first, last in reversed(plugged):
            charge = max(0.0, charge - watts * (first - start))
            charge = min(full, max(0.0, charge + rising * (last - first)))
            start = last
        return max(0.0, charge - watts * (end - start))

    def _plugged_before(
        self, device: int, span: tuple[float, float]
    ) -> Iterator[tuple[float, float]]:
        """Yield when the device is plugged in within a span, last first."""
        if self._plugged is None:
            return
        start, end = span
        period = self._plugged.period_at(device, end) + 1  # that may be one too few
        while self._plugged.begins(device, period + 1) > start:
            for first, last in reversed(self._plugged.intervals(device, period)):
                if max(first, start) < min(last, end):
                    yield max(first, start), min(last, end)
            period -= 1
