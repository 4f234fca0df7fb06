"""When a device may train: plugged in, idle, cool, with enough battery.

What its system does not tell (:mod:`mest_fed.system.readings`) holds nobody back.
"""

from dataclasses import dataclass

from mest_fed.errors import InputError, not_allowed
from mest_fed.schema import FailureKind
from mest_fed.system.readings import Readings

#: Load of a core from which on a device is not idle, beside the node itself.
_BUSY_LOAD = 0.5
_KEY = "--train-when"
_PLUGGED, _IDLE, _COOL, _BATTERY, _SAVING = "plugged", "idle", "cool", "battery", "saving"
ALLOWED = f"{_PLUGGED}, {_IDLE}, {_COOL}:DEGREES, {_BATTERY}:PERCENT, {_SAVING}:PERCENT, by commas"


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
    saving : float or None
        Charge in percent below which it trains by a plan of less work, without power from outside.
    """

    plugged: bool = False
    idle: bool = False
    celsius: float | None = None
    battery: float | None = None
    saving: float | None = None

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
            elif name in (_COOL, _BATTERY, _SAVING):
                most = 150 if name == _COOL else 100
                found["celsius" if name == _COOL else name] = _number(part, number, most)
            else:
                raise not_allowed(_KEY, part, ALLOWED)
        conditions = cls(**found)  # type: ignore[arg-type]
        least, saving = conditions.battery, conditions.saving
        if least is not None and saving is not None and saving <= least:
            allowed = f"more than {_BATTERY}:{least:g}, below which nothing is trained"
            raise not_allowed(_KEY, f"{_SAVING}:{saving:g}", allowed)
        return conditions

    def saves(self, now: Readings) -> bool:
        """Say whether the battery is so short that a plan of less work is asked for."""
        short = self.saving is not None and now.battery is not None and now.battery < self.saving
        return short and now.plugged is False

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


def _number(part: str, text: str, most: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise not_allowed(_KEY, part, ALLOWED) from None
    if not 0 <= value <= most:
        raise InputError(f"{_KEY}: {part!r} is not allowed; allowed: 0 to {most}")
    return value
