"""The run folder of a Flower app as a page: devices, tasks, traffic, and the app's own metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mest_fed.run_rows.app import AppRoundRow
from mest_fed.schema import TaskStatus
from mest_fed.simulation.report.figures import FLEET_FIGURES
from mest_fed.simulation.report.figures.app_metrics import Curve, metrics_over_rounds
from mest_fed.simulation.report.figures.style import Chart, house_style
from mest_fed.simulation.report.formats import count_of, format_count, format_joules
from mest_fed.simulation.report.run_facts import origin_of
from mest_fed.simulation.report.runs import AppRun
from mest_fed.simulation.report.statistics import status_counts
from mest_fed.simulation.report.tables import LAST_ROUNDS, Tile
from mest_fed.units import format_bytes, format_seconds

Metrics = Mapping[str, float]

ROUND_COLUMNS = (
    ("round", ""),
    ("trained", ""),
    ("evaluated", ""),
    ("no result", ""),
    ("up", "measured"),
    ("down", "measured"),
    ("virtual time", "modelled"),
    ("energy", "modelled"),
    ("metrics of training", "measured"),
    ("metrics of evaluation", "measured"),
)
#: Names of the sources of a strategy's metrics, in the order in which they are drawn.
_SOURCES = {
    "server": "on the server",
    "evaluate": "clients, evaluation",
    "train": "clients, training",
}


def page_values(run: AppRun) -> dict[str, Any]:
    """Return what the template ``app.html.j2`` shows of a run."""
    return {
        "run": run,
        "summary": run.summary,
        "heading": run.summary.app,
        "in_short": _in_short(run),
        "warning": _warning(run),
        "tiles": _tiles(run),
        "charts": app_charts(run),
        "origin": origin_of(run),
        "round_columns": ROUND_COLUMNS,
        "round_caption": "A round begins with each exchange of training. Metrics are the means of "
        "the clients' replies, weighted by their examples; up, down and energy are of the round "
        "alone",
        "last_rounds": LAST_ROUNDS,
        "round_rows": [_cells(row) for row in run.rounds],
    }


def _in_short(run: AppRun) -> str:
    summary = run.summary
    text = f"A Flower app on {count_of(summary.nodes, 'simulated node')}"
    if summary.tiers:
        text += f" on {count_of(len(summary.tiers), 'kind')} of device"
    return f"{text}, for {count_of(summary.rounds, 'round')} of training."


def _warning(run: AppRun) -> str | None:
    counts, summary = status_counts(run), run.summary
    said = [summary.unfinished]
    if not run.tasks:
        said.append("no client was asked to train or to evaluate")
    elif not counts[TaskStatus.OK]:
        said.append("no client gave a result")
    elif summary.warning:
        said.append(summary.warning)
    said.append(summary.notice)
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in said if text) or None


def _tiles(run: AppRun) -> list[Tile]:
    summary, counts = run.summary, status_counts(run)
    done = counts.pop(TaskStatus.OK)
    lost = ", ".join(f"{format_count(count)} {status}" for status, count in counts.items() if count)
    sent = f"{format_bytes(summary.bytes_up)} up, {format_bytes(summary.bytes_down)} down"
    tiles = [
        Tile(
            "Tasks done",
            format_count(done),
            "measured",
            (f"of {count_of(len(run.tasks), 'task')}", lost or "none was lost"),
            alarm=not done,
        ),
        Tile("Traffic", format_bytes(summary.bytes_up + summary.bytes_down), "measured", (sent,)),
        Tile("Wall time", format_seconds(summary.wall_seconds), "measured"),
    ]
    if summary.tiers:
        note = ("on the devices' own clocks",)
        tiles += [
            Tile("Virtual time", format_seconds(summary.virtual_seconds), "modelled", note),
            Tile("Energy", format_joules(summary.energy_joules), "modelled", ("whole fleet",)),
        ]
    return tiles


def curves(run: AppRun) -> list[Curve]:
    """Return the metrics of a run by round.

    What strategies returned; where none did, the means of the clients' replies.
    """
    if not run.summary.results:
        kinds = {"evaluate": "evaluate_metrics", "train": "train_metrics"}
        means = {
            source: {row.round: getattr(row, name) for row in run.rounds}
            for source, name in kinds.items()
        }
        return list(_curves(means, ""))
    several = len(run.summary.results) > 1
    found: list[Curve] = []
    for number, result in enumerate(run.summary.results, start=1):
        found += _curves(result.metrics, f" ({number}. {result.strategy})" if several else "")
    return found


def _curves(metrics: Mapping[str, Mapping[int, Metrics]], suffix: str) -> Iterable[Curve]:
    for source, label in _SOURCES.items():
        by_name: dict[str, list[tuple[int, float]]] = {}
        for number, values in metrics.get(source, {}).items():
            for name, value in values.items():
                by_name.setdefault(name, []).append((number, value))
        for name, points in by_name.items():
            yield Curve(name, f"{label}{suffix}", tuple(sorted(points)))


def app_charts(run: AppRun) -> dict[str, Chart | None]:
    """Draw all figures by name; None where the run has nothing to show."""
    trained = [task for task in run.tasks if task.type == "train"]
    of_training = replace(run, tasks=tuple(trained)) if trained else run
    with house_style():
        charts = {"metrics": metrics_over_rounds(curves(run))}
        for name, draw in FLEET_FIGURES.items():
            if run.devices or name == "failures":
                charts[name] = draw(of_training if name == "devices" else run)
    return dict.fromkeys(FLEET_FIGURES) | charts


def _cells(row: AppRoundRow) -> tuple[str, ...]:
    return (
        str(row.round),
        str(row.trained),
        str(row.evaluated),
        str(row.failed),
        format_bytes(row.bytes_up),
        format_bytes(row.bytes_down),
        format_seconds(row.virtual_seconds),
        format_joules(row.energy_joules),
        _in_words(row.train_metrics),
        _in_words(row.evaluate_metrics),
    )


def _in_words(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
