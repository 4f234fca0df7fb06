"""Bytes, seconds, rates and ports as people write and read them."""

import math
import re

from mest_fed.errors import not_allowed

#: The highest TCP port.
LAST_PORT = 65535
_FACTORS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_FACTORS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int, key: str = "bytes") -> int:
    """Read a number of bytes such as ``24MB``, ``1.5 GiB`` or ``65536``.

    Raises
    ------
    InputError
        If the text is not a positive number with one of the known units.
    """
    match = _QUANTITY.fullmatch(str(text))
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise not_allowed(key, text, "a positive number with B, kB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * factor)


_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_seconds(text: str, key: str = "seconds") -> float:
    """Read a duration such as ``500ms``, ``60 s``, ``1.5min`` or ``90``.

    Raises
    ------
    InputError
        If the text is not a positive number with one of the known units.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _SECONDS.get(match[2].lower()) if match else None
    if match is None or factor is None or not float(match[1]) * factor > 0:
        raise not_allowed(key, text, "a positive number with ms, s, min or h")
    return float(match[1]) * factor


def is_port(text: str, least: int = 1) -> bool:
    """Return whether a text is a TCP port, from ``least`` to :data:`LAST_PORT`."""
    return text.isascii() and text.isdigit() and least <= int(text[:6]) <= LAST_PORT


def address_allowed(examples: str, least: int = 1) -> str:
    """Say which addresses are allowed, with ports as :func:`is_port` takes them."""
    any_port = "" if least else ", or 0 for any that is free"
    return f"HOST:PORT with a port from 1 to {LAST_PORT}{any_port}, such as {examples}"


def format_bytes(count: float) -> str:
    """Write bytes with three significant digits in decimal units, for example ``1.86 MB``."""
    if not math.isfinite(count):
        return "—"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            amount = count / factor
            return f"{amount:.3g} {unit}" if abs(amount) < 999.5 else f"{amount:.0f} {unit}"
    return f"{count:.0f} B"


def plural(count: int, noun: str) -> str:
    """Return a noun as it stands after a number: ``round`` after 1, else ``rounds``."""
    return noun if count == 1 else f"{noun}s"


def number_of(count: int, noun: str) -> str:
    """Write a number with its noun, for example ``1 round`` or ``1,000 rounds``."""
    return f"{count:,} {plural(count, noun)}"


def format_seconds(seconds: float) -> str:
    """Write a duration, for example ``350 ms``, ``12.3 s``, ``4 min 05 s`` or ``3 h 20 min``."""
    if not math.isfinite(seconds):
        return "—"
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 1 else f"{milliseconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
