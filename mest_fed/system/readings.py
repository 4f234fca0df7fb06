"""What a system tells of its device at present: power, battery, temperature, load.

Linux tells by files under ``/sys`` and ``/proc``; a file that is not there tells nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Readings:
    """What a system tells of itself; None for what it does not tell.

    Parameters
    ----------
    plugged : bool or None
        Whether it has power from outside.
    battery : float or None
        Charge in percent.
    celsius : float or None
        Temperature of its hottest zone.
    load : float or None
        Running processes a core, over the last minute.
    """

    plugged: bool | None = None
    battery: float | None = None
    celsius: float | None = None
    load: float | None = None


def readings(root: Path = Path("/")) -> Readings:
    """Read what the system under a root tells at present."""
    supplies = list(_supplies(root / "sys/class/power_supply"))
    outside = [online for kind, online, _ in supplies if kind != "Battery" and online is not None]
    charges = [charge for kind, _, charge in supplies if kind == "Battery" and charge is not None]
    plugged = any(outside) if outside else None
    if plugged is None and charges:
        plugged = any(online for kind, online, _ in supplies if kind == "Battery" and online)
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    degrees = [found / 1000 for zone in zones if (found := read_number(zone)) is not None]
    return Readings(
        plugged=plugged,
        battery=min(charges, default=None),
        celsius=max(degrees, default=None),
        load=_load(root),
    )


def _supplies(folder: Path) -> Iterator[tuple[str, bool | None, float | None]]:
    """Yield each supply of power: its kind, whether power flows in, and its charge in percent."""
    for each in sorted(folder.glob("*")):
        kind = read_text(each / "type")
        online = read_number(each / "online")
        charging = read_text(each / "status")
        if kind == "Battery":
            yield kind, charging in ("Charging", "Full"), read_number(each / "capacity")
        elif kind:
            yield kind, None if online is None else online > 0, None


def _load(root: Path) -> float | None:
    load = _number_in(read_text(root / "proc/loadavg").partition(" ")[0])
    cores = len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*")))
    return load / cores if load is not None and cores else None


def _number_in(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number that a file of the system holds; None if it holds none."""
    return _number_in(read_text(path))


def read_text(path: Path) -> str:
    """Return the line that a file of the system holds; an empty one if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
