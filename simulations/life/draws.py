"""What is drawn for one instruction on one device, and once for a device."""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from mest_fed.config.life import LifeSection
from mest_fed.devices import DeviceProfile
from mest_fed.rng import numpy_generator


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


def draw(life: LifeSection, seed: int, number: int, device: int) -> Draws:
    """Draw for an instruction, from (seed, its number, device).

    A device drops out with the configured probability, at a uniform moment. Jitter is log-normal
    with median 1. Memory held is exponential, at most all of it. What one is does not depend on
    whether the others are configured.
    """
    sigmas = (life.compute_jitter, life.bandwidth_jitter)
    if not (life.dropout or life.memory_pressure or any(sigmas)):
        return Draws()
    generator = numpy_generator(seed, "life", number, device)
    drops, moment = generator.random(2).tolist()
    compute, bandwidth = (generator.standard_normal(2) * sigmas).tolist()
    held = min(1.0, life.memory_pressure * float(generator.standard_exponential()))
    drops_at = moment if drops < life.dropout else None
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
        download_rate=profile.download_rate / transfer,
        upload_rate=profile.upload_rate / transfer,
        sources={},
    )
