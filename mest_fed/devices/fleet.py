"""Which device each client is."""

import math
from collections.abc import Mapping

from mest_fed.errors import not_allowed
from mest_fed.rng import numpy_generator


def assign_devices(mix: Mapping[str, float], num_devices: int, seed: int) -> list[str]:
    """Give each client a device profile.

    Counts follow the weights by the largest-remainder method (ties: first in alphabetical order),
    then the order is shuffled by the generator of (seed, ``"devices"``). The order of ``mix`` does
    not matter.

    Parameters
    ----------
    mix : mapping of str to float
        Profile -> weight; the weights need not sum to one.
    num_devices : int
        Number of clients.
    seed : int
        The run's seed.

    Returns
    -------
    list of str
        One profile for each client, length ``num_devices``.

    Raises
    ------
    InputError
        If the mix is empty, or a weight or the number of devices is not positive.
    """
    if num_devices < 1:
        raise not_allowed("fleet.devices", num_devices, "a positive whole number")
    if not mix:
        raise not_allowed("fleet.mix", dict(mix), "at least one profile with its weight")
    for profile, weight in mix.items():
        if not (math.isfinite(weight) and weight > 0):
            raise not_allowed(f"fleet.mix.{profile}", weight, "a positive number")
    counts = _counts(mix, num_devices)
    names = [profile for profile in sorted(mix) for _ in range(counts[profile])]
    order = numpy_generator(seed, "devices").permutation(num_devices)
    return [names[index] for index in order]


def _counts(mix: Mapping[str, float], num_devices: int) -> dict[str, int]:
    total = math.fsum(mix.values())
    quotas = {profile: mix[profile] / total * num_devices for profile in sorted(mix)}
    counts = {profile: math.floor(quota) for profile, quota in quotas.items()}
    missing = num_devices - sum(counts.values())
    by_remainder = sorted(quotas, key=lambda profile: counts[profile] - quotas[profile])
    for profile in by_remainder[:missing]:
        counts[profile] += 1
    return counts
