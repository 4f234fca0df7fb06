"""``mest-fed report``."""

from pathlib import Path
from typing import Annotated

import typer

from mest_fed.catalogue import TABLE_FORMATS
from mest_fed.cli.app import needs
from mest_fed.cli.tables import check_format, suffix_of, write_table
from mest_fed.errors import InputError, not_allowed

#: The page, beside the formats of tables.
HTML = "html"
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
) -> None:
    """Write a run's report.html anew from what the run left in its folder, or its tables.

    The tables are rounds, clients, tiers and layers, a file for each.
    """
    check_format(form, HTML)
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report import run_tables, write_report

    if form == HTML:
        if out is not None:
            raise not_allowed("--out", str(out), f"only beside --format {TABLE_FORMATS.allowed}")
        typer.echo(f"report: {write_report(folder)}")
        return
    place = out or folder
    tables = run_tables(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {place} cannot be used: {error.strerror or error}") from None
    for name, rows in tables.items():
        path = place / f"{name}{suffix_of(form)}"
        write_table(rows, form, path)
        typer.echo(f"{name}: {path} ({len(rows)} rows)")
