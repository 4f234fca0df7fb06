"""Devices with round numbers for the tests of devices' behaviour."""

import dataclasses
import math

from mest_fed.devices import DeviceProfile
from mest_fed.simulation.behaviour.availability import Periods

BOARD = DeviceProfile(
    name="board",
    title="Board",
    memory_bytes=10**9,
    budget_bytes=10**8,
    flops={"dense": 1e6, "block": 2e5},
    memory_rate=1e6,
    core_speed=1.0,
    message_seconds=0.0,
    download_rate=1000.0,
    upload_rate=500.0,
    latency=0.125,
    compute_watts=5.0,
    radio_watts=2.0,
    idle_watts=1.0,
    availability=1.0,
    sources={},
)
SLOW = dataclasses.replace(BOARD, name="slow", flops={"dense": 1e5, "block": 1e5})
PHONE = dataclasses.replace(BOARD, name="phone", battery_joules=1000.0, charge_watts=3.0)


class Fixed(Periods):
    """The same intervals for all devices, once: one period holds them all."""

    limit = 1

    def __init__(self, intervals):
        self._intervals = [(float(start), float(end)) for start, end in intervals]

    def begins(self, device, period):
        return -1e9 if period == 0 else math.copysign(math.inf, period - 0.5)

    def period_at(self, device, time):
        return 0

    def intervals(self, device, period):
        return self._intervals if period == 0 else []
