"""Which device each client is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mest_fed.errors import not_allowed
from mest_fed.rng import numpy_generator


@dataclass(frozen=True, eq=False)
class Assignment(Sequence[str]):
    """The profile of each client: a sequence of names that takes a byte a client.

    Parameters
    ----------
    counts : dict of str to int
        Profile -> number of clients, in alphabetical order; profiles without a client are absent.
    codes : array of unsigned int
        Shape ``(clients,)``: client -> position of its profile in ``counts``.
    """

    counts: dict[str, int]
    codes: npt.NDArray[np.unsignedinteger[Any]]

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.codes)

    @overload
    def __getitem__(self, client: int) -> str: ...

    @overload
    def __getitem__(self, client: slice) -> list[str]: ...

    def __getitem__(self, client: int | slice) -> str | list[str]:
        """Return the profile of a client."""
        names = list(self.counts)
        if isinstance(client, slice):
            return [names[code] for code in self.codes[client]]
        return names[int(self.codes[client])]


def assign_devices(mix: Mapping[str, float], num_devices: int, seed: int) -> Assignment:
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
    Assignment
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
    counts = {name: count for name, count in _counts(mix, num_devices).items() if count}
    kinds = np.arange(len(counts), dtype=np.min_scalar_type(len(counts) - 1))
    codes = np.repeat(kinds, list(counts.values()))
    order = numpy_generator(seed, "devices").permutation(num_devices)
    return Assignment(counts, codes[order])


def _counts(mix: Mapping[str, float], num_devices: int) -> dict[str, int]:
    total = math.fsum(mix.values())
    quotas = {profile: mix[profile] / total * num_devices for profile in sorted(mix)}
    counts = {profile: math.floor(quota) for profile, quota in quotas.items()}
    missing = num_devices - sum(counts.values())
    by_remainder = sorted(quotas, key=lambda profile: counts[profile] - quotas[profile])
    for profile in by_remainder[:missing]:
        counts[profile] += 1
    return counts
