"""A study's file, read and checked: what all runs share, the axes, and what is compared."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mest_fed.catalogue import PROTOCOLS
from mest_fed.config import read_toml
from mest_fed.config.base import FilePath, Section, one_of
from mest_fed.config.load import current_key, known_keys, table_key, unknown_key, validated
from mest_fed.errors import InputError, not_allowed

if TYPE_CHECKING:
    from mest_fed.simulation.study.protocols import Protocol

Scalar = bool | int | float | str
#: Settings by key, ``section.key``.
Settings = Mapping[str, Any]

_TABLES = ("study", "settings", "axes", "bundles", "exclude", "include")
_NAME = re.compile(r"[A-Za-z][\w.-]*")
#: The key of the axis over which means and spreads are taken.
SEED = "run.seed"
#: An axis of memory budgets, each the same for all kinds of device of the fleet.
BUDGET = "budget"


class StudySection(Section):
    """What a study is about."""

    protocol: Annotated[str, one_of(PROTOCOLS)] = "quality"
    """What is measured, and what the runs that are compared must share."""
    preset: str = ""
    """The preset that the runs begin with; ``quickstart`` if no file is named either."""
    config: FilePath = ""
    """A configuration file instead of a preset, relative to the study's file."""
    target: float | None = None
    """The value of the metric that ``cost`` waits for."""
    reference: dict[str, Scalar] = Field(default_factory=dict)
    """The axes and values of the runs that others are compared with, such as ``{method =
    "dense"}``."""


class _StudyTable(Section):
    study: StudySection = StudySection()


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


@dataclass(frozen=True)
class StudyFile:
    """A study as it was written.

    Parameters
    ----------
    name : str
        The file's, without its suffix.
    text : str
        Its text.
    source : str
        What errors call it.
    folder : Path or None
        What paths are relative to; None for a study that ships with mest-fed.
    about : StudySection
        Its section ``study``.
    settings : mapping of str to value
        What all runs share, laid over the preset or the file.
    axes : tuple of Axis
        In order.
    exclude, include : tuple of mapping of str to tuple of Value
        Combinations that are left out, and that are added.
    """

    name: str
    text: str
    source: str
    folder: Path | None
    about: StudySection
    settings: Settings
    axes: tuple[Axis, ...]
    exclude: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    include: tuple[Mapping[str, tuple[Value, ...]], ...] = ()
    bundles: Mapping[str, Mapping[str, Settings]] = field(default_factory=dict)

    @property
    def seed_axis(self) -> Axis | None:
        """The axis over which means are taken, or None."""
        return next((axis for axis in self.axes if axis.key == SEED), None)

    @property
    def others(self) -> tuple[Axis, ...]:
        """All axes but that of seeds."""
        return tuple(axis for axis in self.axes if axis.key != SEED)

    def axis(self, name: str) -> Axis:
        """Return an axis by its name.

        Raises
        ------
        InputError
            If there is none.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise not_allowed(f"axis ({self.source})", name, [axis.name for axis in self.axes])


def study_names() -> list[str]:
    """Return the names of the studies that ship with mest-fed."""
    names = (item.name for item in _studies().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _studies() -> Traversable:
    return files("mest_fed.simulation") / "studies"


def read_study(place: str) -> StudyFile:
    """Read a study's file, or one that ships with mest-fed by its name.

    Raises
    ------
    InputError
        If there is none, or it says something that no study can: names key and value.
    """
    path = Path(place)
    if not path.suffix and not path.exists():
        if place not in study_names():
            raise not_allowed("study", place, [*study_names(), "a TOML file"])
        text = (_studies() / f"{place}.toml").read_text(encoding="utf-8")
        return parse_study(place, tomllib.loads(text), text, f"study {place}", None)
    table = read_toml(path)
    text = path.read_text(encoding="utf-8")
    return parse_study(path.stem, table, text, str(path), path.absolute().parent)


def parse_study(
    name: str, table: Mapping[str, Any], text: str, source: str, folder: Path | None
) -> StudyFile:
    """Check what a study's file says; see :class:`StudyFile` for the arguments.

    Raises
    ------
    InputError
        As :func:`read_study`.
    """
    if unknown := [each for each in table if each not in _TABLES]:
        raise InputError(f"unknown table {unknown[0]} ({source}); allowed: {', '.join(_TABLES)}")
    about = validated(_StudyTable, {"study": _table(table, "study", source)}, source, folder).study
    if about.preset and about.config:
        raise InputError(f"study.preset and study.config exclude each other ({source})")
    settings = _flat(_table(table, "settings", source), source)
    bundles = _bundles(_table(table, "bundles", source), source)
    protocol = protocol_of(about, source)
    axes = dict(_table(table, "axes", source))
    for axis_name, conditions in protocol.conditions.items():
        bundles = {**bundles, axis_name: {**conditions, **bundles.get(axis_name, {})}}
        axes.setdefault(axis_name, list(bundles[axis_name]))
    if not axes:
        raise InputError(f"the study has no axes ({source}); allowed: [axes] with method = [...]")
    found = tuple(_axis(each, values, bundles, source) for each, values in axes.items())
    _check_keys(found, source)
    if stray := [each for each in bundles if each not in axes]:
        raise InputError(f"bundles.{stray[0]} is of no axis ({source}); allowed: {', '.join(axes)}")
    study = StudyFile(name, text, source, folder, about, settings, found, bundles=bundles)
    exclude = tuple(_excluded(study, each) for each in _list(table, "exclude", source))
    include = tuple(_included(study, each) for each in _list(table, "include", source))
    for axis_name, label in about.reference.items():
        _known(study.axis(axis_name), label, f"study.reference.{axis_name}", source)
    changes = {"exclude": exclude, "include": include}
    return StudyFile(**(vars(study) | changes))


def protocol_of(about: StudySection, source: str) -> "Protocol":
    """Return what a study measures.

    Raises
    ------
    InputError
        If it needs a target and has none, or has one that it does not need.
    """
    if about.target is not None and not PROTOCOLS.takes(about.protocol, "target"):
        raise InputError(
            f"study.target = {about.target:g} is not allowed with study.protocol = "
            f"{about.protocol!r} ({source}); allowed: study.protocol = 'cost'"
        )
    try:
        made: Protocol = PROTOCOLS.build(about.protocol, target=about.target)
    except InputError as error:
        raise InputError(f"{error} ({source})") from None
    return made


def _table(table: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    found = table.get(name, {})
    if not isinstance(found, Mapping):
        raise not_allowed(f"{name} ({source})", found, f"a table, [{name}]")
    return found


def _list(table: Mapping[str, Any], name: str, source: str) -> list[Mapping[str, Any]]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise not_allowed(f"{name} ({source})", found, f"tables, each [[{name}]]")
    if empty := [each for each in found if not each]:
        raise not_allowed(f"{name} ({source})", empty[0], "a table with one axis or more")
    return found


def _flat(table: Mapping[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
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
            flat |= _flat(value, source, f"{name}.")
        else:
            raise unknown_key(name, source)
    return flat


def _bundles(table: Mapping[str, Any], source: str) -> dict[str, dict[str, Settings]]:
    found: dict[str, dict[str, Settings]] = {}
    for axis, named in table.items():
        if not isinstance(named, Mapping) or not all(
            isinstance(v, Mapping) for v in named.values()
        ):
            allowed = f"tables of settings, [bundles.{axis}.NAME]"
            raise not_allowed(f"bundles.{axis} ({source})", named, allowed)
        found[axis] = {name: _flat(settings, source) for name, settings in named.items()}
    return found


def _axis(
    name: str, values: Any, bundles: Mapping[str, Mapping[str, Settings]], source: str
) -> Axis:
    where = f"axes.{name}"
    if not _NAME.fullmatch(name):
        raise InputError(f"{where} is no name ({source}); allowed: letters, digits, . _ and -")
    if not isinstance(values, list) or not values:
        raise not_allowed(f"{where} ({source})", values, "a list of values")
    named = bundles.get(name, {})
    plain = [value for value in values if not (isinstance(value, str) and value in named)]
    key = key_of(name, source) if plain else ""
    found = tuple(_value(key, value, named, where, source) for value in values)
    labels = [value.label for value in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InputError(f"{where}: {twice[0]} stands twice ({source}); allowed: each value once")
    return Axis(name, key, found)


def _value(key: str, value: Any, named: Mapping[str, Settings], where: str, source: str) -> Value:
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


def _check_keys(axes: tuple[Axis, ...], source: str) -> None:
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


def _known(axis: Axis, label: Any, where: str, source: str) -> Value:
    for value in axis.values:
        if label in (value.given, value.label) and isinstance(label, bool) == isinstance(
            value.given, bool
        ):
            return value
    raise not_allowed(f"{where} ({source})", label, axis.labels)


def _each(study: StudyFile, table: Mapping[str, Any]) -> Iterator[tuple[Axis, list[Any]]]:
    for name, values in table.items():
        yield study.axis(name), values if isinstance(values, list) else [values]


def _excluded(study: StudyFile, table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        axis.name: tuple(
            _known(axis, each, f"exclude.{axis.name}", study.source).label for each in values
        )
        for axis, values in _each(study, table)
    }


def _included(study: StudyFile, table: Mapping[str, Any]) -> dict[str, tuple[Value, ...]]:
    found = {}
    for axis, values in _each(study, table):
        where, named = f"include.{axis.name}", study.bundles.get(axis.name, {})
        key = axis.key or (key_of(axis.name, study.source) if set(values) - set(named) else "")
        found[axis.name] = tuple(_value(key, v, named, where, study.source) for v in values)
    return found
