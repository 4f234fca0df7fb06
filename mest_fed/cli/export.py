"""``mest-fed export``."""

from pathlib import Path
from typing import Annotated

import typer

from mest_fed.catalogue import EXPORTS
from mest_fed.cli.app import needs
from mest_fed.cli.options import Force, check_new_file
from mest_fed.units import format_bytes


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help=f"{EXPORTS.allowed}."),
    ] = "state-dict",
    out: Annotated[
        Path | None, typer.Option(help="The file; exported.SUFFIX in the run folder if left out.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a run's final model so that it loads where mest-fed is not installed.

    The model is dense, in evaluation mode, of torch's own operators. Of an unfinished run it is the
    model of the newest checkpoint.
    """
    check_new_file(out, force=force)
    needs("client", "flwr", "pydantic")
    from mest_fed.server.export import export_model, export_path

    check_new_file(out, force=force, default=export_path(folder, form))
    done = export_model(folder, form, out)
    typer.echo(f"{form}: {done.path} ({format_bytes(done.path.stat().st_size)})")
    if not done.finished:
        typer.echo(f"the run is not finished: this is the model after round {done.round}")
