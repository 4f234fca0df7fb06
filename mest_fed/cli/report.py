"""``mest-fed report``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mest_fed.catalogue import TABLE_FORMATS
from mest_fed.cli.app import needs
from mest_fed.cli.tables import Rows, check_format, suffix_of, write_table
from mest_fed.errors import InputError, not_allowed

#: The page, beside the formats of tables; the format that is written beside figures.
HTML, CSV = "html", "csv"
PageOrTable = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help=f"{HTML}, {TABLE_FORMATS.allowed}.")
]


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    form: PageOrTable = HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables; the run folder if left out."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the figures as SVG and PDF, and the tables as CSV."
        ),
    ] = None,
) -> None:
    """Write a run's report.html anew from what the run left in its folder, or its tables.

    The tables are rounds, clients, tiers and layers, a file for each; where a run has them also
    real devices (nodes), evaluations of clients, labels and changed settings.
    """
    check_format(form, HTML)
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report import run_tables, write_figures, write_report

    if form == HTML and out is not None:
        raise not_allowed("--out", str(out), f"only beside --format {TABLE_FORMATS.allowed}")
    if figures is not None:
        check_format(CSV)
        drawn = write_figures(folder, figures)
        _write_tables({"figures": drawn} | run_tables(folder), CSV, figures, "--figures")
        typer.echo(f"figures: {figures} ({len(drawn)}, each as SVG and PDF)")
    if form == HTML:
        typer.echo(f"report: {write_report(folder)}")
    else:
        _write_tables(run_tables(folder), form, out or folder, "--out")


def _write_tables(tables: Mapping[str, Rows], form: str, place: Path, key: str) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{key} {place} cannot be used: {error.strerror or error}") from None
    for name, rows in tables.items():
        path = place / f"{name}{suffix_of(form)}"
        write_table(rows, form, path)
        typer.echo(f"{name}: {path} ({len(rows)} rows)")
