"""The configuration of simulated devices' behaviour."""

from typing import Annotated

from pydantic import Field

from mest_fed.catalogue import AVAILABILITIES, CHARGING
from mest_fed.config.base import FilePath, Section, Share, one_of

Sigma = Annotated[float, Field(ge=0, le=3)]
NotAll = Annotated[float, Field(ge=0, lt=1)]


class BehaviourSection(Section):
    """Behaviour of devices in a simulated fleet; everything drawn derives from the run's seed."""

    availability: Annotated[str, one_of(AVAILABILITIES)] = "profile"
    """When devices are there: always; by chance, as likely as the profile says, each time they are
    asked; in one drawn interval a day whose mean length is the profile's availability; or as a
    trace says."""
    trace: FilePath = ""
    """CSV or JSON file of the intervals in which devices are there, relative to the configuration
    file. Its format is described in ``mest_fed/simulation/behaviour/traces.py``."""
    trace_repeats: bool = True
    """Whether a trace begins again at its end; else no device is available after it."""
    phase_spread: Share = 1.0
    """Share of a day over which devices' midnights spread: 0 one time zone, 1 around the globe."""
    away_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds until the server knows that a device which it has asked is away."""
    process_per_message: bool = True
    """Whether a device starts a process for each message, as Flower's node does: that takes the
    profile's ``message_seconds``. False for a node that stays loaded."""
    dropout: NotAll = 0.0
    """Probability that a device drops out during a round."""
    compute_jitter: Sigma = 0.0
    """Sigma of the log-normal factor (median 1) on each round's computing time."""
    bandwidth_jitter: Sigma = 0.0
    """Sigma of the log-normal factor (median 1) on each round's transfer times."""
    stragglers: Share = 0.0
    """Share of the devices that are slower throughout the run."""
    straggler_factor: Annotated[float, Field(ge=1)] = 5.0
    """How many times slower these compute and transfer."""
    memory_pressure: NotAll = 0.0
    """Mean share of a device's RAM that other programs take beyond what its budget leaves them."""
    battery: bool = False
    """Whether devices that have a battery drain it."""
    battery_floor: NotAll = 0.2
    """Share of its charge below which a device refuses to take part."""
    charging: Annotated[str, one_of(CHARGING)] = "diurnal"
    """When batteries are charged: in one drawn interval a day, around midnight, or never."""
    plugged: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Mean share of the day for which a device is plugged in."""
