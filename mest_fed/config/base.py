"""What every section of the run configuration is made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from mest_fed.errors import InputError
from mest_fed.registry import Registry
from mest_fed.strict_json import parse_json

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Named:
    """The check that a text names a thing of a registry, or a member of an enum.

    A path of a file becomes absolute: relative ones are so to the folder of the validation context,
    or else to the current one.
    """

    choices: Registry[Any] | type[StrEnum]
    #: Names that another check of the key refuses, with its reason.
    without: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names that the key takes, those with an argument as people read them."""
        choices = self.choices
        names = choices.names if isinstance(choices, Registry) else [str(it) for it in choices]
        return [name for name in names if name not in self.without]

    def __call__(self, value: str, info: ValidationInfo) -> str:
        """Return the name under which any process finds the thing.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not isinstance(self.choices, Registry):
            if value not in list(self.choices):
                raise ValueError(f"allowed: {', '.join(self.choices)}")
            return value
        try:
            return self.choices.check(value, (info.context or {}).get(FOLDER))
        except InputError:
            raise ValueError(f"allowed: {self.choices.allowed}") from None


#: In the context of a validation: the folder that paths of files are relative to; that of the
#: configuration file, if one is read.
FOLDER = "folder"


def absolute(value: str, info: ValidationInfo) -> str:
    """Make the path of a file absolute; an empty one stays empty."""
    folder = (info.context or {}).get(FOLDER) or Path()
    return str((folder / Path(value).expanduser()).absolute()) if value else ""


def beside_file(value: str, info: ValidationInfo) -> str:
    """Find a path of a configuration file in that file's folder; leave others as they are.

    Other are those of Flower's run config: each machine that reads it looks in its own folder.
    """
    folder = (info.context or {}).get(FOLDER)
    return absolute(value, info) if folder is not None else value


@dataclass(frozen=True)
class Form:
    """What a text may be, for people; beside the check of a key, which does not say it."""

    text: str


PATH = Form("a path, or nothing")
ADDRESS = Form("HOST:PORT, or nothing")
#: The path of a file or folder. Every key that holds one is of this type, or calls its check where
#: the value may be something else, too.
FilePath = Annotated[str, AfterValidator(beside_file), PATH]


def one_of(
    choices: Registry[Any] | type[StrEnum], *, without: tuple[str, ...] = ()
) -> AfterValidator:
    """Return the check that a text is a name of a registry or an enum; see :class:`Named`."""
    return AfterValidator(Named(choices, without))


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("allowed: a table")
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False) if value else ""
    except (TypeError, ValueError) as error:
        raise ValueError(f"allowed: a table of numbers, texts and lists ({error})") from None


def is_table(value: str) -> str:
    """Check that a text is a table, as JSON.

    Raises
    ------
    ValueError
        If it is not.
    """
    try:
        read_options(value)
    except InputError as error:
        raise ValueError(f"allowed: a table ({error})") from None
    return value


#: A table whose keys are another's to name. It is kept as JSON text, since Flower's run
#: configuration holds texts and numbers alone.
Options = Annotated[str, BeforeValidator(_as_text), AfterValidator(is_table)]


def read_options(text: str) -> dict[str, Any]:
    """Return the table that :data:`Options` keeps as text.

    Raises
    ------
    InputError
        If it is none.
    """
    return parse_json(text or "{}", "the text", dict)


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is wanted: pydantic would take 1 and 0."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError("allowed: a number")
        return value


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


def _profiles_beside_file(value: str, info: ValidationInfo) -> str:
    mix = parse_mix(value)
    if not any(map(is_profile_file, mix)):
        return value
    found = {name: beside_file(name, info) if is_profile_file(name) else name for name in mix}
    return format_mix({found[name]: text for name, text in mix.items()})


def is_profile_file(name: str) -> bool:
    """Whether a device's name is the path of its profile."""
    return name.endswith(".toml")


#: ``NAME:VALUE, ...`` of devices, where a name may be the path of a profile.
PerDevice = Annotated[str, AfterValidator(_profiles_beside_file)]


def format_mix(mix: dict[str, Any]) -> str:
    """Write a dict as ``a:1, b:2``."""
    return ", ".join(f"{name}:{value}" for name, value in mix.items())


def budgets_left(fleet: Mapping[str, Any], mix: Any) -> dict[str, Any]:
    """Return the ``budgets`` of a fleet whose mix is replaced, without profiles that are gone.

    A name that was not in the fleet before stays. Where something cannot be read nothing is
    returned: the checks of the section say what is wrong.

    Parameters
    ----------
    fleet : mapping
        The keys of the section as they were.
    mix : str or dict
        Of the fleet that there is now.
    """
    try:
        kept, old, new = map(_mix_of, (fleet["budgets"], fleet["mix"], mix))
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
    here = {Path(name).name for name in new}  # a profile's path may be relative in one of them
    gone = {name for name in old if Path(name).name not in here}
    left = {name: size for name, size in kept.items() if name not in gone}
    return {"budgets": format_mix(left)}


def _mix_of(mix: Any) -> dict[str, Any]:
    return mix if isinstance(mix, dict) else parse_mix(mix)


def parse_names(text: str) -> tuple[str, ...]:
    """Read ``a, b`` into names."""
    return tuple(filter(None, (piece.strip() for piece in text.split(","))))


#: The form of a list of names with wildcards.
PATTERNS = "patterns, or nothing"


def as_text(value: Any) -> Any:
    """Write a list of names as ``a, b``; leave everything else to the check of the type."""
    names = isinstance(value, list | tuple) and all(isinstance(it, str) for it in value)
    return ", ".join(value) if names else value
