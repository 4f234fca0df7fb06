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
    printed = form == "csv" and out is None
    default = Path(f"compare{'.html' if form == HTML else suffix_of(form)}")
    check_new_file(out, force=force, default=None if printed else default)
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report.compare import Comparison, write_comparison

    compared = Comparison.of(folders)
    path = out or default
    if form == HTML:
        write_comparison(compared, path)
    else:
        write_table(compared.rows(), form, None if printed else path)
    if not printed:
        typer.echo(f"comparison: {path}")
        for names in compared.with_the_same_weights():
            typer.echo(f"the same weights, bit for bit: {', '.join(names)}")
