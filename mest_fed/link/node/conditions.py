"""When a device may train: plugged in, idle, cool, with enough battery, where the system tells.

Linux tells by files under ``/sys`` and ``/proc``. What a system does not tell holds nobody back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mest_fed.errors import InputError, not_allowed
from mest_fed.schema import FailureKind

#: Load of a core from which on a device is not idle, beside the node itself.
_BUSY_LOAD = 0.5
_KEY = "--train-when"
_PLUGGED, _IDLE, _COOL, _BATTERY = "plugged", "idle", "cool", "battery"
ALLOWED = f"{_PLUGGED}, {_IDLE}, {_COOL}:DEGREES, {_BATTERY}:PERCENT, by commas"


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


@dataclass(frozen=True)
class Conditions:
    """What must hold for a device to train.

    Parameters
    ----------
    plugged, idle : bool
        Whether it must be.
    celsius : float or None
        Hottest temperature at which it trains.
    battery : float or None
        Least charge in percent at which it trains without power from outside.
    """

    plugged: bool = False
    idle: bool = False
    celsius: float | None = None
    battery: float | None = None

    @classmethod
    def read(cls, text: str) -> "Conditions":
        """Read them as a person writes them, for example ``plugged, cool:70``.

        Raises
        ------
        InputError
            If one is unknown or has no number.
        """
        found: dict[str, bool | float] = {}
        for part in filter(None, (each.strip() for each in text.split(","))):
            name, colon, number = part.partition(":")
            if name in (_PLUGGED, _IDLE) and not colon:
                found[name] = True
            elif name in (_COOL, _BATTERY):
                found["celsius" if name == _COOL else _BATTERY] = _number(part, number)
            else:
                raise not_allowed(_KEY, part, ALLOWED)
        return cls(**found)  # type: ignore[arg-type]

    def obstacle(self, now: Readings) -> tuple[FailureKind, str] | None:
        """Return why the device may not train now; None if it may."""
        on_battery = now.plugged is False
        if self.battery is not None and on_battery and (now.battery or 0.0) < self.battery:
            return FailureKind.BATTERY_LOW, f"the battery is at {now.battery or 0:.0f}%"
        if self.plugged and on_battery:
            return FailureKind.BUSY, "the device is not plugged in"
        if self.celsius is not None and now.celsius is not None and now.celsius > self.celsius:
            return FailureKind.BUSY, f"the device is at {now.celsius:.0f} degrees Celsius"
        if self.idle and now.load is not None and now.load > _BUSY_LOAD:
            return FailureKind.BUSY, f"the device is busy: {now.load:.1f} processes a core"
        return None


def readings(root: Path = Path("/")) -> Readings:
    """Read what the system under a root tells at present."""
    supplies = list(_supplies(root / "sys/class/power_supply"))
    outside = [online for kind, online, _ in supplies if kind != "Battery" and online is not None]
    charges = [charge for kind, _, charge in supplies if kind == "Battery" and charge is not None]
    plugged = any(outside) if outside else None
    if plugged is None and charges:
        plugged = any(online for kind, online, _ in supplies if kind == "Battery" and online)
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    degrees = [found / 1000 for zone in zones if (found := _read(zone)) is not None]
    return Readings(
        plugged=plugged,
        battery=min(charges, default=None),
        celsius=max(degrees, default=None),
        load=_load(root),
    )


def _supplies(folder: Path) -> Iterator[tuple[str, bool | None, float | None]]:
    """Yield each supply of power: its kind, whether power flows in, and its charge in percent."""
    for each in sorted(folder.glob("*")):
        kind = _text(each / "type")
        online = _read(each / "online")
        charging = _text(each / "status")
        if kind == "Battery":
            yield kind, charging in ("Charging", "Full"), _read(each / "capacity")
        elif kind:
            yield kind, None if online is None else online > 0, None


def _load(root: Path) -> float | None:
    load = _number_in(_text(root / "proc/loadavg").partition(" ")[0])
    cores = len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*")))
    return load / cores if load is not None and cores else None


def _read(path: Path) -> float | None:
    return _number_in(_text(path))


def _number_in(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(part: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise not_allowed(_KEY, part, ALLOWED) from None
    if not 0 <= value <= 150:
        raise InputError(f"{_KEY}: {part!r} is not allowed; allowed: 0 to 150")
    return value
