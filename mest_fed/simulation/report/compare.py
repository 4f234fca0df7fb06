"""Several runs on one page: their curves, what each cost, and how their configurations differ."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mest_fed.errors import InputError
from mest_fed.simulation.report.app_run import is_app_run
from mest_fed.simulation.report.figures import comparison
from mest_fed.simulation.report.figures.metric import Curve
from mest_fed.simulation.report.formats import format_joules, format_metric, format_percent
from mest_fed.simulation.report.load import Run, load_run
from mest_fed.units import format_bytes, format_seconds

NOTHING = "—"


@dataclass(frozen=True)
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
        Whether larger (1) or smaller (-1) is better; 0: neither.
    """

    key: str
    heading: str
    basis: str
    write: Callable[[Any], str]
    better: int = 0


@dataclass(frozen=True)
class Comparison:
    """Runs that are compared.

    Parameters
    ----------
    runs : dict of str to Run
        By name, in the order given.
    """

    runs: Mapping[str, Run]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> "Comparison":
        """Read the folders of finished runs.

        Raises
        ------
        InputError
            If there are fewer than two, one stands twice or is no finished run, or their primary
            metrics differ.
        """
        if len(folders) < 2:
            raise InputError(f"compare was given {len(folders)} run; allowed: two or more")
        resolved = [folder.resolve() for folder in folders]
        for place, folder in enumerate(resolved):
            if folder in resolved[:place]:
                raise InputError(f"{folders[place]} stands twice; allowed: each run once")
        for folder in folders:
            if folder.is_dir() and is_app_run(folder):
                raise InputError(
                    f"{folder} holds the run of a Flower app; allowed: runs of mest-fed simulate"
                )
        runs = dict(zip(_names(resolved), map(load_run, folders), strict=True))
        metrics = {name: run.summary.primary_metric for name, run in runs.items()}
        first, *others = metrics.items()
        for name, metric in others:
            if metric != first[1]:
                raise InputError(
                    f"{name} is judged by {metric.name}, {first[0]} by {first[1].name}; "
                    "allowed: runs of one primary metric"
                )
        return cls(runs)

    def columns(self) -> list[Column]:
        """Return the quantities that are compared."""
        metric = next(iter(self.runs.values())).summary.primary_metric
        direction = 1 if metric.higher_is_better else -1

        def value(number: float) -> str:
            return format_metric(metric, number)

        columns = [
            Column("final", f"final {metric.name}", "measured", value, direction),
            Column("best", f"best {metric.name}", "measured", value, direction),
            Column("density", "density", "measured", format_percent),
            Column("rounds", "rounds", "", str),
            Column("traffic_bytes", "sent", "measured", format_bytes, -1),
            Column("virtual_seconds", "virtual time", "modelled", format_seconds, -1),
            Column("energy_joules", "energy", "modelled", format_joules, -1),
            Column("peak_bytes", "largest peak", "", format_bytes, -1),
            Column("wall_seconds", "wall time", "measured", format_seconds),
            Column("updates", "updates accepted", "", str),
            Column("failed", "tasks failed", "", str),
        ]
        if (goal := self.goal) is not None:
            to = f"to {value(goal)}"
            columns += [
                Column("goal_round", f"rounds {to}", "measured", str, -1),
                Column("goal_traffic_bytes", f"sent {to}", "measured", format_bytes, -1),
                Column("goal_virtual_seconds", f"time {to}", "modelled", format_seconds, -1),
            ]
        return columns

    @property
    def goal(self) -> float | None:
        """The value that all runs reached: the worst of their best ones; None without values."""
        curves = [Curve.of(run) for run in self.runs.values()]
        best = [curve.values[curve.best] for curve in curves if curve is not None]
        if len(best) < len(curves):
            return None
        higher = curves[0] is not None and curves[0].metric.higher_is_better
        return min(best) if higher else max(best)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of plain values for each run; a quantity that a run lacks is None."""
        return [{"run": name, **self._row(run)} for name, run in self.runs.items()]

    def _row(self, run: Run) -> dict[str, Any]:
        summary, curve = run.summary, Curve.of(run)
        row: dict[str, Any] = {
            "final": summary.final_value,
            "best": None if curve is None else curve.values[curve.best],
            "density": summary.achieved_density,
            "rounds": summary.rounds,
            "traffic_bytes": summary.bytes_up + summary.bytes_down,
            "virtual_seconds": summary.virtual_seconds,
            "energy_joules": summary.energy_joules,
            "peak_bytes": max((tier.peak_bytes for tier in summary.tiers), default=None),
            "wall_seconds": summary.wall_seconds,
            "updates": summary.clients_trained,
            "failed": summary.clients_failed,
        }
        if curve is not None and (goal := self.goal) is not None:
            higher = curve.metric.higher_is_better
            at = next(row for row, v in curve.points if (v >= goal if higher else v <= goal))
            sent = accumulate(each.bytes_up + each.bytes_down for each in run.rounds)
            totals = dict(zip((each.round for each in run.rounds), sent, strict=True))
            row |= {
                "goal_round": at.round,
                "goal_traffic_bytes": totals[at.round],
                "goal_virtual_seconds": at.virtual_seconds,
            }
        return row

    def differences(self) -> list[tuple[str, list[str]]]:
        """Return the configuration keys whose values differ, with each run's value."""
        tables = [_flat(tomllib.loads(run.config)) for run in self.runs.values()]
        keys = dict.fromkeys(key for table in tables for key in table)
        values = {key: [_shown(table.get(key)) for table in tables] for key in keys}
        return [(key, shown) for key, shown in values.items() if len(set(shown)) > 1]


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
        charts=comparison.draw_comparison(compared.runs),
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
    best: dict[str, Any] = {}
    for column in columns:
        values = [row[column.key] for row in rows if row.get(column.key) is not None]
        if column.better and len(set(map(column.write, values))) > 1:
            best[column.key] = max(values) if column.better > 0 else min(values)

    def cell(row: Mapping[str, Any], column: Column) -> tuple[str, bool]:
        value = row.get(column.key)
        if value is None:
            return NOTHING, False
        written = column.write(value)
        marked = column.key in best and written == column.write(best[column.key])
        return written, marked

    return [(row["run"], [cell(row, column) for column in columns]) for row in rows]


def _warnings(compared: Comparison) -> list[str]:
    """Say what a reader must know before comparing numbers."""
    found = []
    for what, key in (("data sets", "data.name"), ("models", "model.name")):
        names = [shown for name, shown in compared.differences() if name == key]
        if names:
            found.append(f"The runs have different {what}: {', '.join(dict.fromkeys(names[0]))}.")
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
