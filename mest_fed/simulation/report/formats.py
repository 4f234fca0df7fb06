"""Shares, energies, counts and names as the report writes them."""

from mest_fed.schema import Metric
from mest_fed.units import plural

_JOULES_PER_WATT_HOUR = 3600


def format_percent(share: float) -> str:
    """Write a share in [0, 1] with three significant digits, for example ``97.2%``."""
    percent = 100 * share
    return f"{percent:.4g}%" if 99.9 < percent < 100 else f"{percent:.3g}%"


def format_metric(metric: Metric, value: float) -> str:
    """Write a metric: a share as a percentage, another number with four significant digits."""
    return format_percent(value) if metric.share else f"{value:.4g}"


def format_joules(joules: float) -> str:
    """Write an energy, for example ``31.2 kJ``."""
    for unit, factor in (("GJ", 1e9), ("MJ", 1e6), ("kJ", 1e3)):
        if joules >= factor:
            return f"{_three_digits(joules / factor)} {unit}"
    return f"{_three_digits(joules)} J"


def format_known_joules(joules: float | None) -> str:
    """Write an energy, or that it is not known."""
    return "unknown" if joules is None else format_joules(joules)


def format_watt_hours(joules: float) -> str:
    """Write an energy given in joules as watt-hours, for example ``8.67 Wh``."""
    hours = joules / _JOULES_PER_WATT_HOUR
    if hours >= 1000:
        return f"{_three_digits(hours / 1000)} kWh"
    return f"{_three_digits(hours)} Wh"


def format_count(count: int) -> str:
    """Write a count with narrow spaces between thousands, for example ``1 858 000``."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count_of(count: int, noun: str) -> str:
    """Write a count with its noun, for example ``1 round`` or ``12 rounds``."""
    return f"{format_count(count)} {plural(count, noun)}"


def short_name(name: str) -> str:
    """Leave out the folder of a reference such as ``/a/file.py:Net``."""
    file, colon, attribute = name.rpartition(":")
    return f"{file.rpartition('/')[2]}{colon}{attribute}" if file.endswith(".py") else name


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a text that is longer than ``length`` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _three_digits(amount: float) -> str:
    return f"{amount:.3g}" if amount < 999.5 else f"{amount:.0f}"
