"""The lives of a fleet's devices: who is there, with how much charge, memory and speed."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from mest_fed.config.life import LifeSection
from mest_fed.rng import numpy_generator
from mest_fed.schema import FailureKind
from simulations.life.availability import Always, Availability
from simulations.life.battery import Batteries, ProfileOf
from simulations.life.conditions import DeviceConditions
from simulations.life.diurnal import Diurnal
from simulations.life.draws import draw, is_straggler, slowed
from simulations.life.memory_gate import MemoryNeed, shortage

#: Virtual seconds after which a device whose battery is low is worth asking again.
_CHARGING_SECONDS = 900.0


class Lives:
    """Devices' lives, by partition. Nothing is kept of a device but its charge.

    Parameters
    ----------
    life : LifeSection
        What lives are like.
    seed : int
        Seed of the run.
    profile_of : callable
        Partition -> its device.
    need_of : callable, optional
        Partition -> what its plan takes, for ``life.memory_pressure``.
    trace : Availability, optional
        Read from ``life.trace``, where there is one.
    """

    def __init__(
        self,
        life: LifeSection,
        seed: int,
        profile_of: ProfileOf,
        *,
        need_of: Callable[[int], MemoryNeed] | None = None,
        trace: Availability | None = None,
    ) -> None:
        self._life = life
        self._seed = seed
        self._profile_of = profile_of
        self._need_of = need_of if life.memory_pressure else None
        self._availability = self._build_availability(trace)
        self._batteries: Batteries | None = None
        if life.battery:
            plugged = self._days(lambda _: life.plugged, "charging")
            charges = life.charging == "diurnal"
            self._batteries = Batteries(profile_of, seed, plugged if charges else None)

    def meet(
        self, device: int, number: int, *, start: float, within: float, trains: bool, scheme: str
    ) -> DeviceConditions:
        """Draw a device's circumstances for an instruction, from (seed, number, device).

        Parameters
        ----------
        device, number : int
            The partition, and the number of the instruction.
        start, within, scheme : float, float, str
            As :class:`DeviceConditions` has them.
        trains : bool
            Whether it shall train, and so needs memory.
        """
        drawn = draw(self._life, self._seed, number, device)
        slow = 1.0
        if is_straggler(self._seed, device, self._life.stragglers):
            slow = self._life.straggler_factor
        charge = self._charge(device, start)
        kind, refusal, noticed = self._refusal(device, number, start, charge)
        if refusal is None and trains and (refusal := self._shortage(device, drawn.held)):
            kind = FailureKind.OUT_OF_MEMORY
        profile = self._profile_of(device)
        joules = math.inf
        if charge is not None and not self._is_plugged(device, start):
            joules = charge * (profile.battery_joules or 0.0)
        return DeviceConditions(
            number,
            slowed(profile, drawn.compute * slow, drawn.bandwidth * slow),
            scheme,
            start,
            within,
            refusal,
            kind,
            noticed,
            drops_at=drawn.drops_at,
            stays=math.inf if noticed is not None else self._stays(device, start),
            joules=joules,
            battery=charge,
        )

    def is_ready(self, device: int, time: float) -> bool:
        """Whether a device is there and has charge enough.

        True of every device that is there by chance: that is drawn when it is asked.
        """
        there = self._availability.present(device, time)
        return there and not self._is_low(self._charge(device, time))

    def next_ready(self, device: int, time: float) -> float:
        """Return a later moment at which a device that is not ready is worth asking again."""
        moment = self._availability.returns(device, time)
        return moment if moment > time else time + _CHARGING_SECONDS

    def spend(self, device: int, start: float, seconds: float, joules: float) -> None:
        """Drain what a round took."""
        if self._batteries is not None:
            self._batteries.spend(device, start, seconds, joules)

    def state(self) -> dict[str, npt.NDArray[np.float64 | np.int64]]:
        """Return what is kept of devices, for a checkpoint."""
        return {} if self._batteries is None else self._batteries.state()

    def restore(self, state: Mapping[str, npt.NDArray[np.float64 | np.int64]]) -> None:
        """Take back what :meth:`state` gave."""
        if self._batteries is not None:
            self._batteries.restore(state)

    def _build_availability(self, trace: Availability | None) -> Availability:
        if self._life.availability == "diurnal":
            return self._days(lambda device: self._profile_of(device).availability, "availability")
        if self._life.availability == "trace":
            assert trace is not None, "who configures a trace reads it"
            return trace
        return Always()  # by chance: see _refusal

    def _days(self, share: Callable[[int], float], purpose: str) -> Diurnal:
        return Diurnal(self._seed, share, spread=self._life.phase_spread, purpose=purpose)

    def _refusal(
        self, device: int, number: int, start: float, charge: float | None
    ) -> tuple[FailureKind | None, str | None, float | None]:
        """Return why a device does not begin, and how many seconds later the server knows."""
        there = self._availability.present(device, start)
        if self._life.availability == "profile":
            chance = numpy_generator(self._seed, "availability", number, device).random()
            there = chance < self._profile_of(device).availability
        if not there:
            return FailureKind.AWAY, "device was away", self._life.away_seconds
        if self._is_low(charge):
            reason = f"battery is low: {charge:.0%}, below {self._life.battery_floor:.0%}"
            return FailureKind.BATTERY_LOW, reason, 0.0
        return None, None, None

    def _shortage(self, device: int, held: float) -> str | None:
        if self._need_of is None:
            return None
        return shortage(self._need_of(device), self._profile_of(device).memory_bytes, held)

    def _stays(self, device: int, start: float) -> float:
        return self._availability.leaves(device, start) - start

    def _charge(self, device: int, time: float) -> float | None:
        return None if self._batteries is None else self._batteries.share(device, time)

    def _is_low(self, charge: float | None) -> bool:
        return charge is not None and charge < self._life.battery_floor

    def _is_plugged(self, device: int, time: float) -> bool:
        return self._batteries is not None and self._batteries.is_plugged(device, time)
