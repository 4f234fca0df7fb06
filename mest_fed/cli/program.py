"""``mest-fed program``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mest_fed.catalogue import MODELS
from mest_fed.cli.app import needs
from mest_fed.cli.options import (
    PICTURE,
    Batch,
    Classes,
    Density,
    Image,
    Json,
    Method,
    Norm,
    Scheme,
    Settings,
    Width,
    check_picture,
)
from mest_fed.errors import not_allowed
from mest_fed.system.files import writing


def program(
    model: Annotated[str, typer.Argument(help=f"{MODELS.allowed}.")],
    batch: Batch = None,
    group: Annotated[
        str,
        typer.Option(help="Examples that go through all layers at once: auto, or a number."),
    ] = "auto",
    width: Width = None,
    norm: Norm = None,
    scheme: Scheme = None,
    density: Density = None,
    method: Method = None,
    image: Image = None,
    classes: Classes = None,
    settings: Settings = None,
    as_json: Json = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the arena over the step to a .svg or .png file."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write step.program and weights.arrays there, which clients/c/ trains.",
        ),
    ] = None,
) -> None:
    """Show a training step as a program: its operators, and the arena that holds their buffers.

    A batch goes through the layers in groups; operators are shown for one. Bytes and work are
    modelled; the arena is what a group takes beside parameters, states, sums and inputs.
    """
    needs("client", "flwr", "pydantic")
    check_picture(picture)
    size = _group(group)
    from mest_fed.cli.planning.options import check_options

    options = {
        "model.name": model,
        "model.width": width,
        "model.norm": norm,
        "sparsity.scheme": scheme,
        "sparsity.density": density,
        "sparsity.method": method,
        "training.batch_size": batch,
    }
    check_options((None, None), options, settings or [], model="MODEL")
    # These load torch, which takes seconds.
    from mest_fed.cli.planning.request import read_request
    from mest_fed.cli.programs.report import ProgramReport, print_report

    request = read_request((None, None), options, settings or [], (image, classes))
    report = ProgramReport.of(request, size)
    if picture is not None:
        from mest_fed.cli.programs.picture import draw_arena

        with writing(picture, PICTURE):
            draw_arena(report, picture)
    if export is not None:
        from mest_fed.cli.programs.files import export_step

        export_step(report, export)
    if as_json:
        typer.echo(json.dumps(report.as_table(), indent=2))
        return
    print_report(report)
    if picture is not None:
        typer.echo(f"picture: {picture}")
    if export is not None:
        typer.echo(f"program and weights: {export}")


def _group(text: str) -> int | None:
    """Return a group's size; None for ``auto``."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise not_allowed("group", text, "auto, or a whole number of at least 1")
    return int(text)
