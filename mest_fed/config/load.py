"""Reading and writing run configurations: TOML files, ``section.key=value``, flat Flower config."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from enum import StrEnum
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from mest_fed.catalogue import KNOBS
from mest_fed.config.base import (
    FOLDER,
    Named,
    budgets_left,
    is_profile_file,
    is_table,
    parse_names,
    read_options,
)
from mest_fed.config.sections import RunConfig
from mest_fed.errors import InputError
from mest_fed.own_code import OwnCode
from mest_fed.registry import Registry

log = getLogger(__name__)

#: Keys of earlier versions, and what they are called now. A whole section has no dot.
RENAMED = {"life": "behaviour", "memory.consume": "memory.release_gradients"}

Scalar = bool | int | float | str
Table = dict[str, dict[str, Any]]


def known_keys() -> list[str]:
    """Return every key as ``section.key``."""
    return _keys(RunConfig)


def _keys(model: type[BaseModel]) -> list[str]:
    return [f"{section}.{key}" for section, keys in model().model_dump().items() for key in keys]


def named() -> dict[str, Registry[Any] | type[StrEnum]]:
    """Return ``section.key`` -> what it may name, for the keys that name anything."""
    found: dict[str, Registry[Any] | type[StrEnum]] = {}
    for section, values in RunConfig():
        for key, field in type(values).model_fields.items():
            for check in field.metadata:
                if isinstance(choices := getattr(check, "func", None), Named):
                    found[f"{section}.{key}"] = choices.choices
    return found


def find_named(config: RunConfig) -> None:
    """Find everything that a configuration names, so that what is missing is said at once.

    Raises
    ------
    InputError
        If a reference leads nowhere, or to what is no function or class.
    """
    for _, choices, name in named_things(config):
        if isinstance(choices, Registry):
            choices.find(name)


def named_files(config: RunConfig) -> list[Path]:
    """Return the Python files of a user's own that a configuration refers to, in order."""
    places = {name.rpartition(":")[0] for *_, name in named_things(config)}
    return sorted(Path(place) for place in places if place.endswith(".py"))


def named_things(config: RunConfig) -> Iterator[tuple[str, Registry[Any] | type[StrEnum], str]]:
    """Yield all that a configuration names: the key, what the name is of, and the name."""
    flat = to_flat(config)
    for key, choices in named().items():
        yield key, choices, str(flat[key])
    for name in config.memory.preference or ():
        yield KNOBS.key, KNOBS, name


def own_files(config: RunConfig) -> list[Path]:
    """Return all files of a user's own that decide what a run computes, data excepted, in order.

    They are the files that the configuration names, and the modules of the user's own that this
    process has imported, such as those that a named file imports.
    """
    from mest_fed.nn.models.weights import weights_file  # torch: reading a configuration needs none

    others = [place for place in config.fleet.weights if is_profile_file(place)]
    others += [config.behaviour.trace] if config.behaviour.trace else []
    weights = config.model.weights
    files = {Path(place).absolute() for place in others} | OwnCode.imported().files
    files |= {*named_files(config), *([weights_file(Path(weights))] if weights else [])}
    return sorted(files)


def from_table(
    table: Mapping[str, Any],
    source: str,
    folder: Path | None = None,
    typed: Mapping[str, str] | None = None,
) -> RunConfig:
    """Build a configuration from sections of keys.

    Parameters
    ----------
    table : mapping
        Section -> key -> value; what is absent keeps its default.
    source : str
        Where it comes from, for error messages.
    folder : Path, optional
        What paths in references (``file.py:attribute``) are relative to; the current folder by
        default.
    typed : mapping of str to str, optional
        ``section.key`` -> the option that a person gave it by.

    Raises
    ------
    InputError
        If a key is unknown or a value not allowed; names the first such key.
    """
    return validated(RunConfig, table, source, folder, typed)


#: What pydantic's errors of kind want, in our words.
_KINDS = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
}

Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model],
    table: Mapping[str, Any],
    source: str,
    folder: Path | None = None,
    typed: Mapping[str, str] | None = None,
) -> Model:
    """Build a configuration of any kind from sections of keys; see :func:`from_table`."""
    try:
        return model.model_validate(_renamed(table, source), context={FOLDER: folder})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown_key(key, source, model) from None
        text = first["msg"].removeprefix("Value error, ").replace("Input should be", "allowed:")
        if first["type"] in _KINDS:
            text = f"allowed: {_KINDS[first['type']]}"
        if not key:  # a rule between sections
            raise InputError(f"{text} ({source})") from None
        option = (typed or {}).get(key)
        named = f"{key} = {first['input']!r} is not allowed ({source})"
        if option is not None:
            named = f"{option} = {first['input']!r} is not allowed"
        message = f"{named}; {text}"
        raise InputError(message) from None


def _renamed(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Read the keys of earlier versions under their new names, and say so in a line each.

    Raises
    ------
    InputError
        If a key is there under both names.
    """
    current: dict[str, Any] = {}
    renamed: dict[str, None] = {}
    typed: dict[str, str] = {}
    for section, keys in table.items():
        if not isinstance(keys, Mapping):
            current[section] = keys
            continue
        for key, value in keys.items():
            name = current_key(f"{section}.{key}")
            if name != f"{section}.{key}":
                renamed.setdefault(section if section in RENAMED else f"{section}.{key}")
            before = typed.setdefault(name, f"{section}.{key}")
            if before != f"{section}.{key}":
                raise InputError(f"{before} and {section}.{key} are the same key ({source})")
            place, _, leaf = name.partition(".")
            if name == KNOBS.key and isinstance(value, str):
                value = _renamed_knobs(value, source)
            current.setdefault(place, {})[leaf] = value
        current.setdefault(current_key(section), {})
    for old in renamed:
        log.warning("%s is now called %s (%s)", old, RENAMED[old], source)
    return current


def _renamed_knobs(order: str, source: str) -> str:
    """Read the knobs of earlier versions in an order under their new names, alike."""
    names = []
    for old in parse_names(order):
        name = current_key(f"memory.{old}").removeprefix("memory.")  # some are keys, too
        if name != old:
            log.warning("%s: %s is now called %s (%s)", KNOBS.key, old, name, source)
        names.append(name)
    return ", ".join(names)


def current_key(key: str) -> str:
    """Return what a key, or a section, of an earlier version is called now."""
    section, dot, name = key.partition(".")
    return RENAMED.get(key, f"{RENAMED.get(section, section)}{dot}{name}")


def unknown_key(key: str, source: str, model: type[BaseModel] = RunConfig) -> InputError:
    """Build the error for a key that does not exist: the nearest one, and those of its section."""
    keys = _keys(model)
    near = get_close_matches(key, keys, n=1)
    section = key.partition(".")[0]
    siblings = [known for known in keys if known.startswith(f"{section}.")]
    allowed = ", ".join(siblings) or ", ".join(model.model_fields)
    hint = f"did you mean {near[0]}? " if near else ""
    if section == "study" and model is RunConfig:
        hint = "this is a study, which mest-fed study runs; "
    return InputError(f"unknown key {key} ({source}); {hint}allowed: {allowed}")


def read_toml(path: Path) -> Table:
    """Read a TOML file.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    InputError
        If the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; allowed: a TOML file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; allowed: a TOML file") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def with_settings(table: Mapping[str, Any], settings: Iterable[str]) -> Table:
    """Lay ``section.key=value`` settings over a table; values are TOML, or else plain text.

    Where they replace the fleet's mix alone, the budgets of profiles that are gone go, too: who
    sets a mix over a preset does not know them.

    Raises
    ------
    InputError
        If a setting has not that form, or its key is unknown.
    """
    merged: Table = {}
    for section, keys in table.items():
        for key, value in keys.items():
            place, _, leaf = current_key(f"{section}.{key}").partition(".")
            merged.setdefault(place, {})[leaf] = value
    before, typed = dict(merged.get("fleet", {})), set[str]()
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"--set {setting!r} is not allowed; allowed: section.key=value")
        current = current_key(key.strip())
        if table_key(current):
            _set_in_table(merged, current, _toml_value(text.strip()))
            continue
        if current not in known_keys():
            raise unknown_key(key.strip(), "--set")
        if current != key.strip():
            log.warning("%s is now called %s (--set)", key.strip(), current)
        section, _, name = current.partition(".")
        merged.setdefault(section, {})[name] = _toml_value(text.strip())
        typed.add(current)
    if {"fleet.mix", "fleet.budgets"} & typed == {"fleet.mix"}:
        merged["fleet"] |= budgets_left(before, merged["fleet"]["mix"])
    return merged


def table_key(key: str) -> bool:
    """Whether a key, such as ``data.options.length``, is one within a table of options."""
    parent, _, name = key.rpartition(".")
    return bool(name) and any(f"{section}.{leaf}" == parent for section, leaf in _tables())


def _tables() -> Iterator[tuple[str, str]]:
    """Yield the (section, key) whose values are tables of options."""
    for section, values in RunConfig():
        for key, field in type(values).model_fields.items():
            if any(getattr(check, "func", None) is is_table for check in field.metadata):
                yield section, key


def _set_in_table(merged: Table, key: str, value: Any) -> None:
    section, name, option = key.split(".", 2)
    before = merged.setdefault(section, {}).get(name, {})
    table = read_options(before) if isinstance(before, str) else before
    merged[section][name] = {**table, option: value}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(config: BaseModel) -> str:
    """Write a configuration, every key of it."""
    return tomli_w.dumps(config.model_dump())


def to_flat(config: RunConfig) -> dict[str, Scalar]:
    """Flatten into ``section.key`` -> scalar, as Flower's run config is."""
    return {
        f"{section}.{key}": value
        for section, keys in config.model_dump().items()
        for key, value in keys.items()
    }


def from_flat(flat: Mapping[str, Scalar]) -> RunConfig:
    """Build a configuration from Flower's run config.

    Raises
    ------
    InputError
        As :func:`from_table`.
    """
    table: Table = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        table.setdefault(section, {})[name] = value
    return from_table(table, "run config")
