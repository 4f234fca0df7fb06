"""Time and energy that work and traffic cost on a device. All figures are modelled."""

from dataclasses import dataclass

from mest_fed.devices.profile import DeviceProfile
from mest_fed.errors import not_allowed


@dataclass(frozen=True)
class Work:
    """Floating-point operations, 2 for each multiply-add, of live weights only.

    Parameters
    ----------
    dense_flops : float
        Operations of dense layers.
    sparse_flops : float
        Operations of sparse layers.
    """

    dense_flops: float
    sparse_flops: float

    def __mul__(self, times: float) -> "Work":
        """Return the work of doing this several times, as for several images."""
        return Work(self.dense_flops * times, self.sparse_flops * times)


def train_seconds(profile: DeviceProfile, work: Work, scheme: str) -> float:
    """Return how long the device takes for work (modelled).

    Parameters
    ----------
    profile : DeviceProfile
        The device.
    work : Work
        What is computed.
    scheme : str
        Scheme of the sparse layers, for example ``block:8``.

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    kind = scheme.partition(":")[0]
    if kind not in profile.flops:
        raise not_allowed("scheme", scheme, profile.flops)
    return work.dense_flops / profile.flops["dense"] + work.sparse_flops / profile.flops[kind]


def download_seconds(profile: DeviceProfile, num_bytes: float) -> float:
    """Return how long the device takes to receive bytes: latency + bytes / rate (modelled)."""
    return profile.latency + num_bytes / profile.download_rate


def upload_seconds(profile: DeviceProfile, num_bytes: float) -> float:
    """Return how long the device takes to send bytes: latency + bytes / rate (modelled)."""
    return profile.latency + num_bytes / profile.upload_rate


def energy_joules(
    profile: DeviceProfile,
    compute_seconds: float,
    radio_seconds: float,
    *,
    idle_seconds: float = 0.0,
) -> float:
    """Return the energy that the whole device draws while it computes, transfers and waits.

    Modelled: power times time of each.
    """
    return (
        profile.compute_watts * compute_seconds
        + profile.radio_watts * radio_seconds
        + profile.idle_watts * idle_seconds
    )
