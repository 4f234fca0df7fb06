"""``mest-fed plan``."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from mest_fed.catalogue import KNOBS, METHODS, MODELS, NORMS, SCHEMES
from mest_fed.cli.app import needs
from mest_fed.cli.planning.request import PlanReport, PlanRequest, read_budget, read_preference
from mest_fed.cli.planning.text import print_report
from mest_fed.devices import load_profile
from mest_fed.errors import not_allowed


def plan(
    model: Annotated[str, typer.Option(help=f"{MODELS.allowed}.")] = "resnet32",
    budget: Annotated[
        str | None, typer.Option(metavar="BYTES", help="What training may add, such as 24MB.")
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="What the whole client process may take, instead."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Profile name or path of a TOML file: its speed, and its budget if none is given."
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="KNOBS",
            help=f"What to give up, least harm first: {', '.join(KNOBS)} in another order.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images in one optimizer step.", min=1)] = 64,
    scheme: Annotated[str, typer.Option(help=f"{SCHEMES.allowed}.")] = "block",
    density: Annotated[float, typer.Option(help="Target density.")] = 0.1,
    method: Annotated[str, typer.Option(help=f"{METHODS.allowed}.")] = "mest-ems",
    norm: Annotated[str, typer.Option(help=f"{NORMS.allowed}.")] = "group",
    width: Annotated[
        float | None,
        typer.Option(help="Factor on the channel counts; 2 for resnet32, else 1 if left out."),
    ] = None,
    image: Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH.")] = "3x32x32",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    threads: Annotated[
        int | None,
        typer.Option(
            help="That the device computes with; if left out, 1 for a --device (as in a "
            "simulation), else this machine's.",
            min=1,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw memory against time to a .svg or .png file."),
    ] = None,
) -> None:
    """Plan training within a memory budget, and say what it costs. All figures are modelled."""
    _check_picture(picture)
    profile = None if device is None else load_profile(device)
    order = read_preference(prefer)
    request = PlanRequest(
        model,
        width,
        norm,
        scheme,
        density,
        method,
        batch,
        image,
        classes,
        _threads(threads, device),
    )
    report = PlanReport(request, read_budget(budget, limit, profile), profile, order)
    with _no_collector():
        _report(report, as_json, picture)


def _report(report: PlanReport, as_json: bool, picture: Path | None) -> None:
    """Print the report, and draw it if that is wanted."""
    if as_json:
        typer.echo(json.dumps(report.as_table(frontier=picture is not None), indent=2))
    else:
        print_report(report)
    if picture is not None:
        _draw(report, picture)
        if not as_json:
            typer.echo(f"picture: {picture}")


def _threads(given: int | None, device: str | None) -> int:
    if given is None:
        return torch.get_num_threads() if device is None else 1
    return given


@contextmanager
def _no_collector() -> Iterator[None]:
    """Leave cyclic garbage alone: looking for it in all of torch time and again takes a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_picture(picture: Path | None) -> None:
    """Find what would keep a picture from being drawn, before anything slow."""
    if picture is None:
        return
    if picture.suffix.lower() not in (".svg", ".png"):
        raise not_allowed("--picture", str(picture), "a file that ends in .svg or .png")
    if not picture.absolute().parent.is_dir():
        raise not_allowed("--picture", str(picture), "a file in a folder that exists")
    needs("simulation", "matplotlib", "jinja2")


def _draw(report: PlanReport, picture: Path) -> None:
    from mest_fed.cli.planning.picture import draw_frontier

    try:
        draw_frontier(report, picture)
    except OSError as error:
        allowed = f"a file that can be written ({error.strerror})"
        raise not_allowed("--picture", str(picture), allowed) from None
