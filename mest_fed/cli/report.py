"""``mest-fed report``."""

from pathlib import Path
from typing import Annotated

import typer

from mest_fed.cli.app import needs
from mest_fed.cli.tables import TABLE_FORMATS, check_format, write_table
from mest_fed.errors import not_allowed


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="html, csv or parquet.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables of csv and parquet; the run folder if left out."),
    ] = None,
) -> None:
    """Write a run's report.html anew from what the run left in its folder, or its tables.

    The tables are rounds, clients, tiers and layers, a file for each.
    """
    check_format(form, ("html", *TABLE_FORMATS))
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report import run_tables, write_report

    if form == "html":
        if out is not None:
            raise not_allowed("--out", str(out), "only beside --format csv or parquet")
        typer.echo(f"report: {write_report(folder)}")
        return
    place = out or folder
    if not place.is_dir():
        raise not_allowed("--out", str(place), "a folder that exists")
    for name, rows in run_tables(folder).items():
        path = place / f"{name}.{form}"
        write_table(rows, form, path)
        typer.echo(f"{name}: {path} ({len(rows)} rows)")
