"""What every section of the run configuration is made of."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def one_of(*allowed: str) -> AfterValidator:
    """Return the check that a text is one of these."""

    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"allowed: {', '.join(allowed)}")
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
