"""What a system tells of the power that it draws: a processor's counters, or a battery's flow."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mest_fed.system.readings import read_number, read_text

_MICRO = 1e-6


@dataclass(frozen=True)
class PowerMeter:
    """Something that tells energy.

    Parameters
    ----------
    what : str
        What is told, for people.
    joules : callable or None
        Energy since some moment; None where power is told instead.
    watts : callable or None
        Power at present.
    """

    what: str
    joules: Callable[[], float] | None = None
    watts: Callable[[], float] | None = None


def find_meter(root: Path = Path("/")) -> PowerMeter | None:
    """Return what tells energy on the system under a root; None where nothing does."""
    return _rapl(root) or _battery(root)


def _rapl(root: Path) -> PowerMeter | None:
    """Return the counters of an x86 processor's packages, which often only root may read."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*"))
    files = [zone / "energy_uj" for zone in zones if zone.name.count(":") == 1]
    if not files or any(read_number(file) is None for file in files):
        return None

    def joules() -> float:
        return sum(read_number(file) or 0.0 for file in files) * _MICRO

    return PowerMeter("the processor's packages (RAPL)", joules=joules)


def _battery(root: Path) -> PowerMeter | None:
    """Return what flows out of a battery, while nothing charges it."""
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if read_text(supply / "type") != "Battery" or read_text(supply / "status") != "Discharging":
            continue

        def watts(supply: Path = supply) -> float:
            power = read_number(supply / "power_now")
            if power is not None:
                return abs(power) * _MICRO
            current, voltage = (
                read_number(supply / "current_now"),
                read_number(supply / "voltage_now"),
            )
            return abs(current or 0.0) * _MICRO * (voltage or 0.0) * _MICRO

        if watts() > 0:
            return PowerMeter("the battery's flow", watts=watts)
    return None
