"""``name:value, name:value`` lists: tables in one string, as Flower's run config needs."""

from typing import Any


def parse_mix(text: str) -> dict[str, str]:
    """Read ``a:1, b:2`` into a dict; a name without a value gets ``1``.

    Raises
    ------
    ValueError
        If a name is empty or stands twice.
    """
    mix: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, colon, value = part.rpartition(":")
        name, value = (name.strip(), value.strip()) if colon else (value.strip(), "1")
        if not name or name in mix:
            raise ValueError(f"{part!r} has no name or stands twice; allowed: NAME:VALUE, ...")
        mix[name] = value
    return mix


def format_mix(mix: dict[str, Any]) -> str:
    """Write a dict as ``a:1, b:2``."""
    return ", ".join(f"{name}:{value}" for name, value in mix.items())
