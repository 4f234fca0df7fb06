"""The axes of a study: their values, and which keys of the configuration these set."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mest_fed.config.load import current_key, known_keys, table_key, unknown_key
from mest_fed.errors import InputError, not_allowed

Scalar = bool | int | float | str
#: Settings by key, ``section.key``.
Settings = Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z][\w.-]*")
#: The key of the axis over which means and spreads are taken.
SEED = "run.seed"
#: An axis of memory budgets, each the same for all kinds of device of the fleet.
BUDGET = "budget"


@dataclass(frozen=True)
class Value:
    """A value of an axis.

    Parameters
    ----------
    label : str
        What it is called.
    given : scalar
        As in the file; of a bundle its name.
    settings : mapping of str to value
        What it sets.
    bundle : bool
        Whether it is a named bundle of settings: those are laid over the values of other axes.
    """

    label: str
    given: Scalar
    settings: Settings
    bundle: bool = False


@dataclass(frozen=True)
class Axis:
    """One thing in which the runs of a study differ.

    Parameters
    ----------
    name : str
        As in the file.
    key : str
        The key of the configuration that plain values set; empty where all are bundles.
    values : tuple of Value
        In order.
    """

    name: str
    key: str
    values: tuple[Value, ...]

    def __getitem__(self, label: str) -> Value:
        return next(each for each in self.values if each.label == label)

    @property
    def labels(self) -> list[str]:
        """What the values are called."""
        return [each.label for each in self.values]


def flat_settings(table: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """Return nested or dotted keys as ``section.key``; each must exist.

    Raises
    ------
    InputError
        If one does not.
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = current_key(f"{prefix}{key}")
        if table_key(f"{name}.x") and isinstance(value, Mapping):
            flat |= {f"{name}.{option}": each for option, each in value.items()}
        elif name in known_keys() or table_key(name):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= flat_settings(value, source, f"{name}.")
        else:
            raise unknown_key(name, source)
    return flat


def read_bundles(table: Mapping[str, Any], source: str) -> dict[str, dict[str, Settings]]:
    """Return the bundles of each axis by name.

    Raises
    ------
    InputError
        If one is no table of settings, or names a key that does not exist.
    """
    found: dict[str, dict[str, Settings]] = {}
    for axis, named in table.items():
        if not isinstance(named, Mapping) or not all(
            isinstance(v, Mapping) for v in named.values()
        ):
            allowed = f"tables of settings, [bundles.{axis}.NAME]"
            raise not_allowed(f"bundles.{axis} ({source})", named, allowed)
        found[axis] = {name: flat_settings(settings, source) for name, settings in named.items()}
    return found


def read_axis(
    name: str, values: Any, bundles: Mapping[str, Mapping[str, Settings]], source: str
) -> Axis:
    """Return an axis, each of whose values is a bundle or one for the key that it names.

    Raises
    ------
    InputError
        If its name or a value is not allowed.
    """
    where = f"axes.{name}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where} is no name ({source}); allowed: letters, digits, . _ and -")
    if not isinstance(values, list) or not values:
        raise not_allowed(f"{where} ({source})", values, "a list of values")
    named = bundles.get(name, {})
    plain = [value for value in values if not (isinstance(value, str) and value in named)]
    key = key_of(name, source) if plain else ""
    found = tuple(value_of(key, value, named, where, source) for value in values)
    labels = [value.label for value in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"{where}: {twice[0]} stands twice ({source}); allowed: each value once")
    return Axis(name, key, found)


def value_of(key: str, value: Any, named: Mapping[str, Settings], where: str, source: str) -> Value:
    """Return a value of an axis: a bundle of that name, or one for the axis's key.

    Raises
    ------
    InputError
        If it is neither.
    """
    if isinstance(value, str) and value in named:
        return Value(value, value, named[value], bundle=True)
    if not isinstance(value, Scalar):
        raise not_allowed(f"{where} ({source})", value, "numbers, texts, true and false, bundles")
    return Value(label_of(value), value, {key: value})


def label_of(value: Scalar) -> str:
    """Return what a value is called, which a table that was written and read keeps."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value) or "none"


def key_of(name: str, source: str) -> str:
    """Return the key that an axis sets: its name, or the one key whose last part it is.

    Raises
    ------
    InputError
        If there is none, or there are several.
    """
    if name == BUDGET:
        return BUDGET
    known = known_keys()
    current = current_key(name)
    if current in known or table_key(current):
        return current
    if "." in name:
        raise unknown_key(name, f"{source}, axes")
    keys = [key for key in known if key.partition(".")[2] == name]
    if len(keys) > 1:
        allowed = ", ".join(f'"{key}"' for key in keys)
        raise InputError(f"axes.{name} may be several keys ({source}); allowed: {allowed}")
    if not keys:
        raise InputError(
            f"axes.{name} names nothing ({source}); allowed: {BUDGET}, a key of the configuration "
            f'such as seed or "sparsity.density", or an axis of [bundles.{name}.NAME] alone'
        )
    return keys[0]


def check_keys(axes: tuple[Axis, ...], source: str) -> None:
    """Refuse two axes that set the same: plain values of one key, or bundles."""
    setters: dict[tuple[str, bool], str] = {}
    for axis in axes:
        keys = {(key, value.bundle) for value in axis.values for key in value.settings}
        for key in sorted(keys):
            before = setters.setdefault(key, axis.name)
            if before != axis.name:
                raise InputError(
                    f"axes.{before} and axes.{axis.name} both set {key[0]} ({source}); "
                    "allowed: each key by one axis"
                )


def known_value(axis: Axis, label: Any, where: str, source: str) -> Value:
    """Return the value of an axis that something else in the file names.

    Raises
    ------
    InputError
        If the axis has none of that name.
    """
    if isinstance(label, Scalar):
        for value in axis.values:
            if label_of(label) == value.label:
                return value
    raise not_allowed(f"{where} ({source})", label, axis.labels)
