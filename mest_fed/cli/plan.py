"""``mest-fed plan``."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer

from mest_fed.catalogue import KNOBS, MODELS
from mest_fed.cli.app import needs
from mest_fed.cli.node_memory import NodeMemory
from mest_fed.cli.options import (
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
    drawing,
)
from mest_fed.cli.planning.report import FleetReport, PlanReport
from mest_fed.cli.planning.request import (
    Budget,
    PlanRequest,
    budget_within,
    device_budget,
    read_request,
)
from mest_fed.cli.planning.text import print_fleet, print_report
from mest_fed.config.load import Scalar
from mest_fed.devices import load_profile
from mest_fed.errors import InputError, not_allowed
from mest_fed.system.limits import MARGIN
from mest_fed.task import Task


def plan(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.toml]",
            help="A simulation's configuration: plans what it would, for each device of its fleet.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="A preset of mest-fed simulate instead of a file.")
    ] = None,
    settings: Settings = None,
    budget: Annotated[
        str | None, typer.Option(metavar="BYTES", help="What training may add, such as 24MB.")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="What all of the client may take, as mest-fed client's."
        ),
    ] = None,
    limit: Annotated[str | None, typer.Option(hidden=True)] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help=f"Part of the limit that stays free; memory.margin ({MARGIN:g}) if left out.",
        ),
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
            help=f"What to give up, least harm first: {', '.join(KNOBS)} in another order, "
            "and file.py:knob beside them.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{MODELS.allowed}; resnet32 without a configuration.")
    ] = None,
    batch: Batch = None,
    scheme: Scheme = None,
    density: Density = None,
    method: Method = None,
    norm: Norm = None,
    width: Width = None,
    image: Image = None,
    classes: Classes = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="That the device computes with; if left out, 1 for a --device (as in a "
            "simulation), else this machine's.",
            min=1,
        ),
    ] = None,
    as_json: Json = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw memory against time to a .svg or .png file."),
    ] = None,
) -> None:
    """Plan training within a memory budget, and say what it costs. All figures are modelled.

    With a configuration or a preset: the plan of each device of its fleet, which is the one that
    mest-fed simulate gives it. Its model and method can be changed by options.
    """
    needs("client", "flwr", "pydantic")
    check_picture(picture)
    if limit is not None:
        typer.echo("--limit is now called --memory-limit", err=True)
        memory_limit = limit if memory_limit is None else memory_limit
    memory = NodeMemory.read(budget, memory_limit, margin)
    options: dict[str, Scalar | None] = {
        "model.name": model,
        "model.width": width,
        "model.norm": norm,
        "sparsity.scheme": scheme,
        "sparsity.density": density,
        "sparsity.method": method,
        "training.batch_size": batch,
        "memory.prefer": prefer,
    }
    profile = None if device is None else load_profile(device)
    request = read_request((preset, config), options, settings or [], (image, classes))
    if request.task.config.model.weights:
        request.task.build_model()  # which checks the file
    with _no_collector():
        if device is None and memory.budget is None and memory.limit is None:
            _report_fleet(request, as_json, picture)
            return
        found = _budget(memory, request.task, device)
        report = PlanReport(request, found, _threads(threads, device), profile)
        _report(report, as_json, picture)


def _budget(memory: NodeMemory, task: Task, device: str | None) -> Budget:
    """Return the budget that the options give, or else the device's."""
    if memory.budget is not None:
        return Budget(memory.budget)
    if memory.limit is not None:
        return budget_within(memory, task.config.memory.margin)
    assert device is not None
    return device_budget(task, device)


def _report_fleet(request: PlanRequest, as_json: bool, picture: Path | None) -> None:
    """Print the plans of a configuration's fleet."""
    if not request.name:
        raise InputError(
            "plan needs a budget; allowed: --budget BYTES, --memory-limit BYTES, the budget that "
            "--device NAME has, or those of a fleet, from CONFIG.toml or --preset NAME"
        )
    if picture is not None:
        raise not_allowed("--picture", str(picture), "beside a --device or a budget")
    report = FleetReport(request)
    if as_json:
        typer.echo(json.dumps(report.as_table(), indent=2))
    else:
        print_fleet(report)


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


def _draw(report: PlanReport, picture: Path) -> None:
    from mest_fed.cli.planning.picture import draw_frontier

    with drawing(picture):
        draw_frontier(report, picture)
