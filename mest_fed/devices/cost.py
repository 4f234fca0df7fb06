"""Time and energy that work and traffic cost on a device. All figures are modelled.

A step takes what its multiply-adds, its bytes and its calls take: products at a profile's rates of
operations, the others at its rate of memory, and calls at the speed of its core, whatever their
size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from mest_fed.devices.profile import DeviceProfile
from mest_fed.errors import not_allowed
from mest_fed.sparsity import base_scheme


@dataclass(frozen=True)
class Work:
    """What has to be done: operations, bytes and calls.

    Parameters
    ----------
    dense_flops : float
        Floating-point operations of dense layers, 2 for each multiply-add, of active weights only.
    sparse_flops : float
        Operations of sparse layers.
    moved_bytes : float
        Bytes that operators without products read and write.
    core_seconds : float
        Seconds of one core of the reference machine (:data:`REFERENCE`) that go into calls and
        starts, whatever their size.
    python_seconds : float
        Seconds of one core of the reference machine that go into Python: what a round takes beside
        its steps.
    gather_seconds : float
        Seconds of one core of the reference machine that go into finding what the weights of sparse
        linear layers meet: numbers that lie anywhere, of which caches decide.
    """

    dense_flops: float = 0.0
    sparse_flops: float = 0.0
    moved_bytes: float = 0.0
    core_seconds: float = 0.0
    python_seconds: float = 0.0
    gather_seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        """Return the work of doing both."""
        return Work(*(mine + others for mine, others in zip(self, other, strict=True)))

    def __mul__(self, times: float) -> "Work":
        """Return the work of doing this several times, as for several examples."""
        return Work(*(mine * times for mine in self))

    def __iter__(self) -> Iterator[float]:
        """Yield the numbers, in their order."""
        return iter(vars(self).values())


#: What a client reports of its work -> the field of :class:`Work`.
WORK_METRICS = {
    "flops-dense": "dense_flops",
    "flops-sparse": "sparse_flops",
    "bytes-moved": "moved_bytes",
    "core-seconds": "core_seconds",
    "python-seconds": "python_seconds",
    "gather-seconds": "gather_seconds",
}


def work_metrics(work: Work) -> dict[str, float]:
    """Return what a client reports of its work."""
    return {key: getattr(work, name) for key, name in WORK_METRICS.items()}


@dataclass(frozen=True)
class StepWork:
    """What training steps take, by what it grows with.

    Parameters
    ----------
    example : Work
        Of each example.
    group : Work
        Of each group of examples that go through the model together.
    step : Work
        Of each step: its update, and its start.
    """

    example: Work
    group: Work
    step: Work

    def total(self, examples: float, groups: float, steps: float) -> Work:
        """Return the work of so many."""
        return self.example * examples + self.group * groups + self.step * steps

    def of_batch(self, examples: int, group: int) -> Work:
        """Return the work of a step on a batch in groups of so many examples, at most."""
        return self.total(examples, -(-examples // group), 1)

    def with_step(self, more: Work) -> "StepWork":
        """Return the same with more work in each step."""
        return replace(self, step=self.step + more)


class Rates(Protocol):
    """How fast a machine works; a :class:`DeviceProfile` says it of a device."""

    @property
    def flops(self) -> Mapping[str, float]:
        """Kind of work -> operations a second."""

    @property
    def memory_rate(self) -> float:
        """Bytes a second of operators without products."""

    @property
    def core_speed(self) -> float:
        """Speed of one core with small calls, as a multiple of the reference machine's."""

    @property
    def gather_speed(self) -> float | None:
        """Speed of one core with weights of sparse linear layers; None: as with small calls."""

    @property
    def python_time(self) -> float:
        """Time that one core takes in Python, as a multiple of the reference machine's."""


@dataclass(frozen=True)
class MachineRates:
    """The rates of a machine that is no device; see :class:`Rates`."""

    flops: Mapping[str, float]
    memory_rate: float
    core_speed: float = 1.0
    python_time: float = 1.0
    gather_speed: float | None = None


#: One core of the machine on which the constants of steps were measured: AMD EPYC of the third
#: generation (AVX2), 2026-11-30, rounded from two fits to some 60 compiled steps (ADR 30).
REFERENCE = MachineRates({"dense": 50e9, "block": 33e9, "unstructured": 24e9}, 38e9)


@dataclass(frozen=True)
class WeightSeconds:
    """What the places of a sparse linear layer's weights cost, which few examples share.

    Seconds of one core of the reference machine (:data:`REFERENCE`) for each active weight in a
    product of a group.

    Parameters
    ----------
    single : float
        Of a single weight.
    strip : float
        Of a weight in a strip of several rows.
    """

    single: float = 1e-8
    strip: float = 2.9e-9

    def of_weight(self, rows: int) -> float:
        """Return what an active weight costs, by the rows of its granules."""
        return self.single if rows == 1 else self.strip


def train_seconds(rates: Rates, work: Work, scheme: str) -> float:
    """Return how long a device takes for work (modelled).

    Parameters
    ----------
    rates : Rates
        Of the device: its profile.
    work : Work
        What is to be done.
    scheme : str
        Scheme of the sparse layers, for example ``block:8``.

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    return (
        work.dense_flops / rates.flops["dense"]
        + work.sparse_flops / rate_of(rates, scheme)
        + work.moved_bytes / rates.memory_rate
        + work.core_seconds / rates.core_speed
        + work.python_seconds * rates.python_time
        + work.gather_seconds / (rates.gather_speed or rates.core_speed)
    )


def rate_of(rates: Rates, scheme: str) -> float:
    """Return how many operations of sparse layers a device does a second (modelled).

    Raises
    ------
    InputError
        If the profile has no rate for the scheme.
    """
    kind = scheme if scheme in rates.flops else base_scheme(scheme)
    if kind not in rates.flops:
        raise not_allowed("scheme", scheme, rates.flops)
    return rates.flops[kind]


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
