"""A study as one HTML page, self-contained as a run's report is."""

from collections.abc import Mapping, Sequence
from typing import Any

from mest_fed.simulation.report.figures.page_colours import with_variables
from mest_fed.simulation.report.figures.style import Chart
from mest_fed.simulation.report.formats import format_metric
from mest_fed.simulation.report.render import fill_template
from mest_fed.simulation.study import tables
from mest_fed.simulation.study.analysis import Analysis
from mest_fed.simulation.study.environment import Environment
from mest_fed.simulation.study.figures import Legend, Look, draw_study
from mest_fed.simulation.study.rows import DONE
from mest_fed.simulation.study.tables import TableCell, TextTable
from mest_fed.units import format_bytes, format_seconds

Row = Mapping[str, Any]
_SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
_DIFFERENCES = "differences-"


def render_study(analysis: Analysis, round_rows: Sequence[Row], environment: Environment) -> str:
    """Render the page; whatever file and rows say is escaped.

    Parameters
    ----------
    analysis : Analysis
        The study and its rows.
    round_rows : sequence of mapping
        One a cell and round.
    environment : Environment
        Where they come from.
    """
    study = analysis.study
    charts = {chart.key: chart for chart in draw_study(analysis, round_rows)}
    legend = Legend(analysis)
    markers = [(rest, _SHAPES[mark]) for rest, mark in legend.markers.items()]
    missing = sum(row["status"] != DONE for row in analysis.rows)
    return fill_template(
        "study.html.j2",
        title=study.name,
        protocol=study.about.protocol,
        question=analysis.protocol.question,
        in_short=tables.in_short(analysis),
        warning=_warning(missing, len(analysis.rows)),
        facts=_facts(analysis),
        axes=[(axis.name.capitalize(), axis.labels) for axis in study.others],
        charts=[chart for key, chart in charts.items() if not key.startswith(_DIFFERENCES)],
        colour_axis=legend.axis,
        looks=[(label, swatch(look)) for label, look in legend.looks.items()],
        markers=markers if len(markers) > 1 else [],
        colours=_colours(analysis, legend),
        means=tables.means_table(analysis),
        differences=_pairings(analysis, charts),
        failures=tables.failures_table(analysis),
        command=environment.command,
        origin=environment.facts(),
        text=study.text,
        cells=_cells(analysis),
    )


def swatch(look: Look) -> str:
    """Return the style of a spot in the colour of a look."""
    face = "transparent" if look.hollow else look.colour
    return with_variables(f"border-color: {look.colour}; background: {face}")


def _colours(analysis: Analysis, legend: Legend) -> dict[str, str]:
    looks = legend.looks
    groups = {tables.name_of(it): swatch(looks[legend.label(it)]) for it in analysis.groups}
    return groups


def _warning(missing: int, cells: int) -> str:
    if not missing:
        return ""
    return f"{missing} of {cells} cells are not done; what is missing is in no mean."


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    study = analysis.study
    seeds = study.seed_axis
    base = study.about.config or f"preset {study.about.preset or 'quickstart'}"
    facts = [
        ("Begins with", base.rpartition("/")[2]),
        ("Cells", str(len(analysis.rows))),
        ("Seeds", ", ".join(seeds.labels) if seeds else "that of the configuration"),
        ("Compared with", ", ".join(pairing.name for pairing in analysis.pairings) or "nothing"),
    ]
    return facts


def _pairings(
    analysis: Analysis, charts: Mapping[str, Chart]
) -> list[tuple[TextTable, Chart | None]]:
    return [
        (
            tables.differences_table(analysis, pairing),
            charts.get(f"{_DIFFERENCES}{'-'.join(pairing.reference)}"),
        )
        for pairing in analysis.pairings
    ]


def _cells(analysis: Analysis) -> TextTable:
    """Return each cell as it ended."""

    def row(each: Row) -> list[TableCell]:
        if each["final"] is None:
            return [TableCell(each["cell"]), TableCell(each["status"]), *[TableCell("—")] * 5]
        peak = each["peak_bytes"]
        return [
            TableCell(each["cell"]),
            TableCell(each["status"]),
            TableCell(format_metric(analysis.metric, each["final"])),
            TableCell("—" if peak is None else format_bytes(peak)),
            TableCell(format_bytes(each["traffic_bytes"])),
            TableCell(format_seconds(each["virtual_seconds"])),
            TableCell(each["model_sha256"][:12]),
        ]

    headings = [
        ("cell", ""),
        ("status", ""),
        (f"final {analysis.metric.name}", "measured"),
        ("peak", "measured"),
        ("sent", "measured"),
        ("virtual time", "modelled"),
        ("model", ""),
    ]
    return TextTable("", headings, [row(each) for each in analysis.rows])
