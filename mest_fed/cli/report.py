"""``mest-fed report``."""

from pathlib import Path
from typing import Annotated

import typer

from mest_fed.cli.app import needs


def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write a run's report.html anew from what the run left in its folder."""
    needs("simulation", "matplotlib", "jinja2")
    from mest_fed.simulation.report import write_report

    typer.echo(f"report: {write_report(folder)}")
