"""Checks of a profile's values; each error names the file and the key in one line."""

import math
from collections.abc import Sequence

from mest_fed.errors import InputError, not_allowed

_ORIGINS = ("measured: ", "data sheet: ", "modelled: ")


def check_keys(where: str, table: object, keys: Sequence[str]) -> None:
    """Raise InputError unless ``table`` is a table with exactly these keys."""
    if not isinstance(table, dict):
        raise not_allowed(where.removesuffix("."), table, f"a table with {', '.join(keys)}")
    for key in table:
        if key not in keys:
            raise InputError(f"{where}{key} is not a known key; known: {', '.join(keys)}")
    for key in keys:
        if key not in table:
            raise InputError(f"{where}{key} is missing")


def check_sources(where: str, table: object, keys: Sequence[str]) -> None:
    """Raise InputError unless every key has a source that says what kind of figure it is."""
    check_keys(where, table, keys)
    assert isinstance(table, dict)
    for key, value in table.items():
        if not text(where + key, value).startswith(_ORIGINS):
            kinds = " or ".join(repr(origin) for origin in _ORIGINS)
            raise not_allowed(where + key, value, f"a text that begins with {kinds}")


def text(key: str, value: object) -> str:
    """Return a text that is not empty, or raise InputError."""
    if not isinstance(value, str) or not value.strip():
        raise not_allowed(key, value, "a text")
    return value


def positive_int(key: str, value: object) -> int:
    """Return a positive whole number, or raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise not_allowed(key, value, "a positive whole number")
    return value


def positive_number(key: str, value: object) -> float:
    """Return a positive finite number, or raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise not_allowed(key, value, "a positive number")
    if not math.isfinite(value) or value <= 0:
        raise not_allowed(key, value, "a positive number")
    return float(value)
