"""Several runs on one page: their curves, what each cost, and how their configurations differ."""

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mest_fed.errors import InputError
from mest_fed.run_rows.app import AppSummary
from mest_fed.schema import Metric
from mest_fed.simulation.report.app_run import curves as curves_of_app
from mest_fed.simulation.report.figures import comparison
from mest_fed.simulation.report.figures.comparison import Family
from mest_fed.simulation.report.figures.metric import Curve
from mest_fed.simulation.report.formats import format_joules, format_percent, short_name
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import AppRun, Clock, Run
from mest_fed.units import format_bytes, format_seconds

NOTHING = "—"
_MOST_DRAWN = 6


@dataclass(frozen=True, eq=False)
class Column:
    """One quantity of the table of runs.

    Parameters
    ----------
    key : str
        Its column in CSV and Parquet.
    heading, basis : str
        What stands above it; ``measured``, ``modelled`` or empty.
    write : callable
        Formats a value.
    better : {1, -1, 0}
        Whether larger (1) or smaller (-1) is better; 0: neither, or not known.
    runs : collection of str or None
        Those that have it; None for all.
    """

    key: str
    heading: str
    basis: str
    write: Callable[[Any], str]
    better: int = 0
    runs: Collection[str] | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs that are compared.

    Parameters
    ----------
    runs : dict of str to Run or AppRun
        By name, in the order given.
    """

    runs: Mapping[str, Run | AppRun]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> "Comparison":
        """Read the folders of finished runs.

        Raises
        ------
        InputError
            If there are fewer than two, or one stands twice or is no finished run.
        """
        if len(folders) < 2:
            raise InputError(f"compare was given {len(folders)} run; allowed: two or more")
        resolved = [folder.resolve() for folder in folders]
        for place, folder in enumerate(resolved):
            if folder in resolved[:place]:
                raise InputError(f"{folders[place]} stands twice; allowed: each run once")
        return cls(dict(zip(_names(resolved), map(load_run, folders), strict=True)))

    def with_the_same_weights(self) -> list[list[str]]:
        """Return the names of our runs that ended with the same bits, two or more each."""
        by_digest: dict[str, list[str]] = {}
        for name, run in self.runs.items():
            if isinstance(run, Run):
                by_digest.setdefault(run.summary.model_sha256, []).append(name)
        return [names for names in by_digest.values() if len(names) > 1]

    @cached_property
    def primary(self) -> list[Family]:
        """The primary metrics by which our runs are judged: one axis for each."""
        by_metric: dict[Metric, dict[str, Curve | None]] = {}
        for name, run in self.runs.items():
            if isinstance(run, Run):
                by_metric.setdefault(run.summary.primary_metric, {})[name] = Curve.of(run)
        return [
            Family(
                metric.name,
                f"primary{number}",
                {name: () if curve is None else curve.points for name, curve in curves.items()},
                metric.higher_is_better,
                metric.share,
                _where(curves),
            )
            for number, (metric, curves) in enumerate(by_metric.items())
        ]

    @cached_property
    def of_apps(self) -> list[Family]:
        """The metrics of Flower apps, whose direction is not known."""
        found: dict[tuple[str, str], dict[str, list[tuple[Any, float]]]] = {}
        for name, run in self.runs.items():
            if isinstance(run, AppRun):
                rows = {row.round: row for row in run.rounds}
                for curve in curves_of_app(run):
                    points = [(rows[n], value) for n, value in curve.points if n in rows]
                    found.setdefault((curve.name, curve.source), {})[name] = points
        return [
            Family(f"{name} ({source})", f"app{number}", curves)
            for number, ((name, source), curves) in enumerate(found.items())
        ]

    def columns(self) -> list[Column]:
        """Return the quantities that are compared."""
        columns, clock = [], Clock.of(*self.runs.values())
        for family in self.primary:
            better, name, who = 1 if family.higher_is_better else -1, family.name, family.curves
            columns += [
                Column("final", f"final {name}", "measured", family.value, better, who),
                Column("best", f"best {name}", "measured", family.value, better, who),
            ]
        for family in self.of_apps:
            columns.append(Column(family.name, f"last {family.name}", "measured", family.value))
        columns += [
            Column("density", "density", "measured", format_percent),
            Column("rounds", "rounds", "", str),
            Column("traffic_bytes", "sent", "measured", format_bytes, -1),
            Column("virtual_seconds", clock.name, clock.basis, format_seconds, -1),
            Column("energy_joules", "energy", "modelled", format_joules, -1),
            Column("predicted_peak_bytes", "largest peak", "modelled", format_bytes, -1),
            Column("measured_peak_bytes", "largest peak", "measured", format_bytes, -1),
            Column("wall_seconds", "wall time", "measured", format_seconds),
            Column("updates", "updates accepted", "", str),
            Column("failed", "tasks without an update", "", str),
        ]
        for family in self.primary:
            if (goal := family.goal) is not None:
                to, who = f"to {family.name} {family.value(goal)}", family.curves
                columns += [
                    Column("goal_round", f"rounds {to}", "measured", str, -1, who),
                    Column("goal_traffic_bytes", f"sent {to}", "measured", format_bytes, -1, who),
                    Column(
                        "goal_virtual_seconds", f"time {to}", clock.basis, format_seconds, -1, who
                    ),
                ]
        return columns

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of plain values for each run; a quantity that a run lacks is None.

        ``metric`` is the one of ``final``, ``best`` and ``goal_...``.
        """
        return [{"run": name} | self._row(name, run) for name, run in self.runs.items()]

    def _row(self, name: str, run: Run | AppRun) -> dict[str, Any]:
        summary = run.summary
        costs: dict[str, Any] = {
            "rounds": summary.rounds,
            "traffic_bytes": summary.bytes_up + summary.bytes_down,
            "virtual_seconds": summary.virtual_seconds,
            "energy_joules": summary.energy_joules,
            "wall_seconds": summary.wall_seconds,
        }
        if isinstance(summary, AppSummary):
            last = {each.name: each.curves.get(name) for each in self.of_apps}
            found = {key: points[-1][1] if points else None for key, points in last.items()}
            if not summary.tiers:  # nodes without devices, on which no time passes
                costs |= {"virtual_seconds": None, "energy_joules": None}
            return {**found, **costs, "updates": summary.trained, "failed": summary.failed}
        family = next(each for each in self.primary if name in each.curves)
        measured = [tier.measured_peak_bytes for tier in summary.tiers]
        row = {
            "metric": family.name,
            "final": summary.final_value,
            "best": family.best(name),
            "density": summary.achieved_density,
            **costs,
            "predicted_peak_bytes": max(
                (tier.predicted_peak_bytes for tier in summary.tiers), default=None
            ),
            "measured_peak_bytes": max(filter(None, measured)) if all(measured) else None,
            "updates": summary.clients_trained,
            "failed": summary.clients_failed,
        }
        if (goal := family.goal) is not None:
            row |= _cost_of(goal, family, name, run)
        return row

    def differences(self) -> list[tuple[str, list[str]]]:
        """Return the configuration keys whose values differ, with each run's value."""
        tables = [_flat(tomllib.loads(run.config)) for run in self.runs.values()]
        keys = dict.fromkeys(key for table in tables for key in table)
        values = {key: [_shown(table.get(key)) for table in tables] for key in keys}
        return [(key, shown) for key, shown in values.items() if len(set(shown)) > 1]


def _where(curves: Mapping[str, Curve | None]) -> str:
    medians = [name for name, curve in curves.items() if curve is not None and not curve.central]
    if not medians:
        return ""
    return f"The clients' median, for want of a central test set: {', '.join(medians)}."


def _cost_of(goal: float, family: Family, name: str, run: Run | AppRun) -> dict[str, Any]:
    """Return what it cost a run to reach a value of its metric."""
    higher = family.higher_is_better
    points = family.curves[name]
    at = next(row for row, v in points if (v >= goal if higher else v <= goal))
    sent = accumulate(each.bytes_up + each.bytes_down for each in run.rounds)
    totals = dict(zip((each.round for each in run.rounds), sent, strict=True))
    return {
        "goal_round": at.round,
        "goal_traffic_bytes": totals[at.round],
        "goal_virtual_seconds": at.virtual_seconds,
    }


def write_comparison(compared: Comparison, path: Path) -> None:
    """Write the page, self-contained as a report is.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    here = files("mest_fed.simulation.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((here / "compare.html.j2").read_text(encoding="utf-8"))
    columns = compared.columns()
    page = template.render(
        css=Markup((here / "report.css").read_text(encoding="utf-8")),
        names=list(compared.runs),
        colours=comparison.colours(compared.runs),
        warnings=_warnings(compared),
        charts=[
            (family.title, comparison.draw_comparison(compared.runs, family))
            for family in (*compared.primary, *compared.of_apps[:_MOST_DRAWN])
            if any(family.curves.values())
        ],
        columns=columns,
        rows=_cells(compared.rows(), columns),
        differences=compared.differences(),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _cells(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]
) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Format each run's values, and mark the best of each column."""
    best: dict[Column, Any] = {}
    for column in columns:
        theirs = (row for row in rows if column.runs is None or row["run"] in column.runs)
        values = [row[column.key] for row in theirs if row.get(column.key) is not None]
        if column.better and len(values) > 1 and len(set(map(column.write, values))) > 1:
            best[column] = max(values) if column.better > 0 else min(values)

    def cell(row: Mapping[str, Any], column: Column) -> tuple[str, bool]:
        value = row.get(column.key)
        if value is None or (column.runs is not None and row["run"] not in column.runs):
            return NOTHING, False
        written = column.write(value)
        marked = column in best and written == column.write(best[column])
        return written, marked

    return [(row["run"], [cell(row, column) for column in columns]) for row in rows]


def _warnings(compared: Comparison) -> list[str]:
    """Say what a reader must know before comparing numbers."""
    found = []
    judged = [f"{each.title} ({', '.join(each.curves)})" for each in compared.primary]
    if len(judged) > 1:
        found.append(
            "The runs are judged by different metrics, each of which has axes of its own: "
            f"{'; '.join(judged)}."
        )
    if compared.of_apps:
        found.append("Which direction of a Flower app's metric is better is not known.")
    for what, key in (("data sets", "data.name"), ("models", "model.name")):
        shown = dict(compared.differences()).get(key, ())
        names = dict.fromkeys(short_name(name) for name in shown if name != NOTHING)
        if len(names) > 1:
            found.append(f"The runs have different {what}: {', '.join(names)}.")
    real = [name for name, run in compared.runs.items() if run.deployed]
    if 0 < len(real) < len(compared.runs):
        found.append(f"Times of {', '.join(real)} are measured, those of the others modelled.")
    found.append(
        "Each is one run of one seed: a difference that is smaller than the one between seeds "
        "means nothing."
    )
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """Name each run by its folder, and by as many parents as make the names unlike."""
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'
