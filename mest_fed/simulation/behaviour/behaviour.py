"""The behaviour of a fleet's devices: who is there, with how much charge, memory and speed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mest_fed.catalogue import AVAILABILITIES, CHARGING
from mest_fed.config.behaviour import BehaviourSection
from mest_fed.described import kind_of
from mest_fed.devices import DeviceProfile
from mest_fed.errors import InputError
from mest_fed.memory import Plan
from mest_fed.rng import numpy_generator
from mest_fed.schema import FailureKind
from mest_fed.simulation.behaviour.availability import Availability, ByChance, Periods
from mest_fed.simulation.behaviour.battery import Batteries, ProfileOf
from mest_fed.simulation.behaviour.conditions import DeviceConditions
from mest_fed.units import format_bytes


class Draws(NamedTuple):
    """Of one instruction.

    Parameters
    ----------
    drops_at : float or None
        Share of its round after which the device drops out; None if it does not.
    compute, bandwidth : float
        Factors on the time of computing and of transfers; medians 1.
    held : float
        Share of the device's RAM that other programs take beyond the usual.
    """

    drops_at: float | None = None
    compute: float = 1.0
    bandwidth: float = 1.0
    held: float = 0.0


def draw(behaviour: BehaviourSection, seed: int, number: int, device: int) -> Draws:
    """Draw for an instruction, from (seed, its number, device).

    A device drops out with the configured probability, at a uniform moment. Jitter is log-normal
    with median 1. Memory held is exponential, at most all of it. What one is does not depend on
    whether the others are configured.
    """
    sigmas = (behaviour.compute_jitter, behaviour.bandwidth_jitter)
    if not (behaviour.dropout or behaviour.memory_pressure or any(sigmas)):
        return Draws()
    generator = numpy_generator(seed, "behaviour", number, device)
    drops, moment = generator.random(2).tolist()
    compute, bandwidth = (generator.standard_normal(2) * sigmas).tolist()
    held = min(1.0, behaviour.memory_pressure * float(generator.standard_exponential()))
    drops_at = moment if drops < behaviour.dropout else None
    return Draws(drops_at, math.exp(compute), math.exp(bandwidth), held)


@lru_cache(maxsize=1 << 16)
def is_straggler(seed: int, device: int, share: float) -> bool:
    """Say whether a device is slow throughout the run, drawn from (seed, device)."""
    return bool(share) and float(numpy_generator(seed, "straggler", device).random()) < share


def slowed(profile: DeviceProfile, compute: float, transfer: float) -> DeviceProfile:
    """Return a profile, without its sources, that takes so many times longer.

    Latency stays: it is the network's.
    """
    return replace(
        profile,
        flops={kind: rate / compute for kind, rate in profile.flops.items()},
        memory_rate=profile.memory_rate / compute,
        core_speed=profile.core_speed / compute,
        gather_speed=profile.gather_speed and profile.gather_speed / compute,
        message_seconds=profile.message_seconds * compute,
        download_rate=profile.download_rate / transfer,
        upload_rate=profile.upload_rate / transfer,
        sources={},
    )


@dataclass(frozen=True)
class MemoryNeed:
    """What a device's plan takes of what it may take.

    Parameters
    ----------
    budget : int
        Bytes that training may take while other programs hold no more than usual.
    peak : int
        Bytes that it takes: measured; where not measured, what the plan predicts.
    """

    budget: int
    peak: int


def memory_needs(plans: Mapping[str, Plan], peaks: Mapping[Plan, int]) -> dict[str, MemoryNeed]:
    """Return the need of each profile from its plan and the measured peaks, where there are any."""
    return {
        name: MemoryNeed(plan.budget, peaks.get(plan, plan.footprint.total))
        for name, plan in plans.items()
    }


def shortage(need: MemoryNeed, memory_bytes: int, held: float) -> str | None:
    """Return why a plan does not fit, or None if it does.

    Compared are the plan's peak and what is left of the device's budget when other programs hold
    ``held`` of its RAM beyond what the budget leaves them.

    Parameters
    ----------
    need : MemoryNeed
        Of the device's plan.
    memory_bytes : int
        RAM of the device.
    held : float
        Share of it, from 0 on.
    """
    free = max(0, need.budget - round(held * memory_bytes))
    if need.peak <= free:
        return None
    return (
        f"out of memory: training takes {format_bytes(need.peak)}, and other programs leave "
        f"{format_bytes(free)} of {format_bytes(need.budget)}"
    )


#: Virtual seconds after which a device whose battery is low is worth asking again.
_CHARGING_SECONDS = 900.0


class DeviceBehaviour:
    """Devices' behaviour, by partition. Nothing is kept of a device but its charge.

    Parameters
    ----------
    behaviour : BehaviourSection
        The ``[behaviour]`` section.
    seed : int
        Seed of the run.
    profile_of : callable
        Partition -> its device.
    need_of : callable, optional
        Partition -> what training takes there. A device that has too little left refuses to train.
    trace : Availability, optional
        Read from ``behaviour.trace``, where there is one.
    """

    def __init__(
        self,
        behaviour: BehaviourSection,
        seed: int,
        profile_of: ProfileOf,
        *,
        need_of: Callable[[int], MemoryNeed] | None = None,
        trace: Availability | None = None,
    ) -> None:
        self._settings = behaviour
        self._seed = seed
        self._profile_of = profile_of
        self._need_of = need_of
        given = {"behaviour": behaviour, "seed": seed, "profile_of": profile_of}
        self._availability: Availability = AVAILABILITIES.build(
            behaviour.availability, trace=trace, **given
        )
        self._batteries: Batteries | None = None
        if behaviour.battery:
            plugged = CHARGING.build(behaviour.charging, **given)
            if plugged is not None and not isinstance(plugged, Periods):
                raise InputError(
                    f"{CHARGING.key} = {behaviour.charging!r} gives {kind_of(plugged)}; "
                    f"allowed: what gives a {Periods.__module__}.Periods, or None for never"
                )
            self._batteries = Batteries(profile_of, seed, plugged)

    def draw_conditions(
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
        drawn = draw(self._settings, self._seed, number, device)
        slow = 1.0
        if is_straggler(self._seed, device, self._settings.stragglers):
            slow = self._settings.straggler_factor
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
            starts_process=self._settings.process_per_message,
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

    def _refusal(
        self, device: int, number: int, start: float, charge: float | None
    ) -> tuple[FailureKind | None, str | None, float | None]:
        """Return why a device does not begin, and how many seconds later the server knows."""
        there = self._availability.present(device, start)
        if isinstance(self._availability, ByChance):
            there = self._availability.answers(device, number)
        if not there:
            return FailureKind.AWAY, "device was away", self._settings.away_seconds
        if self._is_low(charge):
            reason = f"battery is low: {charge:.0%}, below {self._settings.battery_floor:.0%}"
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
        return charge is not None and charge < self._settings.battery_floor

    def _is_plugged(self, device: int, time: float) -> bool:
        return self._batteries is not None and self._batteries.is_plugged(device, time)
