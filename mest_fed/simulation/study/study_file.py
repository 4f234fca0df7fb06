"""A study's file, read and checked: what all runs share, the axes, and what is compared."""

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
from mest_fed.config.load import validated
from mest_fed.errors import InputError, not_allowed
from mest_fed.simulation.study.axes import (
    SEED,
    Axis,
    Scalar,
    Settings,
    Value,
    check_keys,
    flat_settings,
    key_of,
    known_value,
    read_axis,
    read_bundles,
    value_of,
)

if TYPE_CHECKING:
    from mest_fed.simulation.study.protocols import Protocol

_TABLES = ("study", "settings", "axes", "bundles", "exclude", "include")


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
    settings = flat_settings(_table(table, "settings", source), source)
    bundles = read_bundles(_table(table, "bundles", source), source)
    protocol = protocol_of(about, source)
    axes = dict(_table(table, "axes", source))
    for axis_name, conditions in protocol.conditions.items():
        bundles = {**bundles, axis_name: {**conditions, **bundles.get(axis_name, {})}}
        axes.setdefault(axis_name, list(bundles[axis_name]))
    if not axes:
        raise InputError(f"the study has no axes ({source}); allowed: [axes] with method = [...]")
    found = tuple(read_axis(each, values, bundles, source) for each, values in axes.items())
    check_keys(found, source)
    if stray := [each for each in bundles if each not in axes]:
        raise InputError(f"bundles.{stray[0]} is of no axis ({source}); allowed: {', '.join(axes)}")
    study = StudyFile(name, text, source, folder, about, settings, found, bundles=bundles)
    exclude = tuple(_excluded(study, each) for each in _list(table, "exclude", source))
    include = tuple(_included(study, each) for each in _list(table, "include", source))
    _check_named(_table(table, "bundles", source), found, include, source)
    for axis_name, label in about.reference.items():
        known_value(study.axis(axis_name), label, f"study.reference.{axis_name}", source)
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


def _check_named(
    bundles: Mapping[str, Mapping[str, Any]],
    axes: tuple[Axis, ...],
    include: tuple[Mapping[str, tuple[Value, ...]], ...],
    source: str,
) -> None:
    """Refuse a bundle of the file that no run would have: its name may be misspelt."""
    for axis in axes:
        added = [value for each in include for value in each.get(axis.name, ())]
        values = [*axis.values, *added]
        named = {value.label for value in values if value.bundle}
        if unused := [name for name in bundles.get(axis.name, {}) if name not in named]:
            given = ", ".join(dict.fromkeys(repr(value.given) for value in values))
            raise InputError(
                f"bundles.{axis.name}.{unused[0]} is no value of axes.{axis.name} ({source}), "
                f"which has {given}; allowed: a text that is one of these"
            )


def _each(study: StudyFile, table: Mapping[str, Any]) -> Iterator[tuple[Axis, list[Any]]]:
    for name, values in table.items():
        yield study.axis(name), values if isinstance(values, list) else [values]


def _excluded(study: StudyFile, table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        axis.name: tuple(
            known_value(axis, each, f"exclude.{axis.name}", study.source).label for each in values
        )
        for axis, values in _each(study, table)
    }


def _included(study: StudyFile, table: Mapping[str, Any]) -> dict[str, tuple[Value, ...]]:
    found = {}
    for axis, values in _each(study, table):
        where, named = f"include.{axis.name}", study.bundles.get(axis.name, {})
        key = axis.key or (key_of(axis.name, study.source) if set(values) - set(named) else "")
        found[axis.name] = tuple(value_of(key, v, named, where, study.source) for v in values)
    return found
