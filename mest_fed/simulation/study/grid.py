"""From a study's axes to its cells, each with a whole configuration."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mest_fed.config import RunConfig, find_named, from_table, to_flat, with_settings
from mest_fed.config.load import Table
from mest_fed.data import find_source
from mest_fed.errors import InputError
from mest_fed.server.modes import check_mode
from mest_fed.simulation.behaviour.clock import check_cohort
from mest_fed.simulation.settings import load_table
from mest_fed.simulation.study.axes import BUDGET, Scalar, Value
from mest_fed.simulation.study.budgets import StudyForecasts, budgeted
from mest_fed.simulation.study.study_file import StudyFile

#: A combination: axis -> its value.
Point = Mapping[str, Value]
_UNFIT = re.compile(r"[^\w.+%-]+")
_LONGEST = 40


@dataclass(frozen=True)
class Cell:
    """One combination of a study, and the run that it takes.

    Parameters
    ----------
    id : str
        Readable, and fit for a folder's name.
    point : mapping of str to Value
        Axis -> its value.
    config : RunConfig
        Of the run.
    digest : str
        Of the configuration as the study has it.
    run : str
        Name of the folder of its run: the first cell's of the same configuration.
    studied : RunConfig
        The configuration as the study has it: without the folder of the data that the command
        line named, which is this machine's.
    """

    id: str
    point: Point
    config: RunConfig
    digest: str
    run: str
    studied: RunConfig

    def as_studied(self, config: RunConfig) -> RunConfig:
        """Return a configuration with the folder of the data that the study has."""
        return with_data(config, self.studied.data.path)

    @property
    def labels(self) -> dict[str, str]:
        """Axis -> what its value is called."""
        return {name: value.label for name, value in self.point.items()}

    @property
    def values(self) -> dict[str, Scalar]:
        """Axis -> its value, for tables."""
        return {name: value.given for name, value in self.point.items()}


def points(study: StudyFile) -> Iterator[dict[str, Value]]:
    """Yield the combinations of a study: all of its axes' but the excluded, then the included.

    The last axis changes first. An axis that an ``include`` does not name takes all of its values.

    Raises
    ------
    InputError
        If an ``include`` adds what is there already, or nothing is left.
    """
    seen: set[tuple[str, ...]] = set()
    for values in product(*(axis.values for axis in study.axes)):
        point = {axis.name: value for axis, value in zip(study.axes, values, strict=True)}
        if not any(_matches(point, each) for each in study.exclude):
            seen.add(_labels(point))
            yield point
    for number, table in enumerate(study.include, start=1):
        named = [table.get(axis.name, axis.values) for axis in study.axes]
        for values in product(*named):
            point = {axis.name: value for axis, value in zip(study.axes, values, strict=True)}
            if _labels(point) in seen:
                which = ", ".join(f"{name} = {value.label}" for name, value in point.items())
                raise InputError(
                    f"include {number} adds {which}, which is there already ({study.source})"
                )
            seen.add(_labels(point))
            yield point
    if not seen:
        raise InputError(f"the study has no cell: all are excluded ({study.source})")


def _labels(point: Point) -> tuple[str, ...]:
    return tuple(value.label for value in point.values())


def _matches(point: Point, table: Mapping[str, tuple[str, ...]]) -> bool:
    return all(point[name].label in labels for name, labels in table.items())


def expand(study: StudyFile, data: str = "") -> list[Cell]:
    """Return the cells of a study, each resolved and checked, in a stable order.

    ``data`` is where this machine has the data; the study's own ``data.path`` by default.

    Cells of one configuration share a run: where a bundle sets what another axis sets, too, as a
    dense method does with a density.

    Raises
    ------
    InputError
        If a configuration is wrong; names the cell.
    """
    _, _, base = load_table(
        study.about.preset or None, Path(study.about.config) if study.about.config else None
    )
    base = with_settings(base, [_setting(*item) for item in study.settings.items()])
    forecasts, owners, found = StudyForecasts(), dict[str, str](), dict[str, Cell]()
    for point in points(study):
        identity = cell_id(point)
        if identity in found:
            identity = f"{identity}-{_short_digest(_labels(point))}"
        source = f"{study.source}, {identity}"
        config = _resolve(base, point, source, study.folder or Path.cwd(), forecasts)
        digest = digest_of(config)
        run = owners.setdefault(digest, identity)
        here = with_data(config, data) if data else config
        found[identity] = Cell(identity, point, here, digest, run, config)
    return list(found.values())


def with_data(config: RunConfig, path: str) -> RunConfig:
    """Return a configuration with another folder of the data, where files are read."""
    if not find_source(config.data.name).has_files:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


def _resolve(
    base: Table, point: Point, source: str, folder: Path, forecasts: StudyForecasts
) -> RunConfig:
    """Lay the values of a point over what all runs share: bundles over plain values."""
    ordered = sorted(point.values(), key=lambda value: value.bundle)
    settings = {key: value for each in ordered for key, value in each.settings.items()}
    budget = settings.pop(BUDGET, None)
    try:
        table = with_settings(base, [_setting(*item) for item in settings.items()])
        config = from_table(table, source, folder)
        if budget is not None:
            config = budgeted(config, budget, forecasts)
        find_named(config)
        check_cohort(config)
        check_mode(config)
    except InputError as error:
        raise error if source in str(error) else InputError(f"{error} ({source})") from None
    if config.deployment.folder or config.deployment.link:
        raise InputError(f"deployment is for real devices; allowed: nothing of it ({source})")
    return config


def _setting(key: str, value: Any) -> str:
    return f"{key}={_inline(value)}"


def _inline(value: Any) -> str:
    """Write a value of a TOML file as TOML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {_inline(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value, ensure_ascii=False)


def cell_id(point: Point) -> str:
    """Return what a cell and its run folder are called, such as ``method=dense,seed=1``."""
    parts = []
    for name, value in point.items():
        text = _UNFIT.sub("-", value.label).strip("-")
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}-{_short_digest(value.label)}"
        parts.append(f"{name.rpartition('.')[2]}={text}")
    return ",".join(parts)


def _short_digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:6]


def digest_of(config: RunConfig) -> str:
    """Return what tells a configuration from all others."""
    text = json.dumps(to_flat(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
