"""Units in which an axis is easiest to read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """An axis in ``unit``, each of ``factor`` base units."""

    factor: float
    unit: str


def time_scale(longest: float) -> Scale:
    """Choose seconds, minutes, hours or days for an axis up to ``longest`` seconds."""
    for factor, unit, least in ((86400, "days", 3), (3600, "hours", 2), (60, "minutes", 3)):
        if longest >= least * factor:
            return Scale(factor, unit)
    return Scale(1, "seconds")


def byte_scale(largest: float) -> Scale:
    """Choose B, kB, MB, GB or TB for an axis up to ``largest`` bytes."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if largest >= 2 * factor:
            return Scale(factor, unit)
    return Scale(1, "B")


def joule_scale(largest: float) -> Scale:
    """Choose J, kJ or MJ for an axis up to ``largest`` joules."""
    for factor, unit in ((10**6, "MJ"), (10**3, "kJ")):
        if largest >= 2 * factor:
            return Scale(factor, unit)
    return Scale(1, "J")
