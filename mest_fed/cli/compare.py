"""``mest-fed compare``."""

from pathlib import Path
from typing import Annotated

import typer

from mest_fed.cli.app import needs
from mest_fed.cli.options import Force, check_new_file
from mest_fed.cli.report import HTML, PageOrTable
from mest_fed.cli.tables import check_format, suffix_of, write_table


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs, two or more.")],
    form: PageOrTable = HTML,
    out: Annotated[
        Path | None,
        typer.Option(help="The file; compare.FORMAT here if left out, csv to standard output."),
    ] = None,
    force: Force = False,
) -> None:
    """Compare runs on one page: their curves, what each cost, how their configurations differ."""
    check_format(form, HTML)
    check_new_file(out, force=force)
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report.compare import Comparison, write_comparison

    compared = Comparison.of(folders)
    if form == HTML:
        path = out or Path("compare.html")
        write_comparison(compared, path)
    else:
        path = out or Path(f"compare{suffix_of(form)}")
        write_table(compared.rows(), form, None if form == "csv" and out is None else path)
        if form == "csv" and out is None:
            return
    typer.echo(f"comparison: {path}")
