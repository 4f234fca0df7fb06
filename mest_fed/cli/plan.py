"""``mest-fed plan``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from mest_fed.errors import InputError
from mest_fed.system.limits import MARGIN
from mest_fed.units import parse_seconds

if TYPE_CHECKING:
    from mest_fed.config.load import Scalar


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
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="That a round of the --device may take, such as 60s or 2min; a plan that is too "
            "slow gives up more.",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="That a device trains on, for --deadline; the largest share of a configuration's "
            "if left out.",
            min=1,
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
    """Plan training within a memory budget, and say what it costs. Figures of plans are modelled.

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
    if examples is not None and deadline is None:
        raise InputError("--examples goes with --deadline TIME")
    seconds = None if deadline is None else parse_seconds(deadline, "--deadline")
    from mest_fed.cli.planning.options import check_options

    check_options((preset, config), options, settings or [])
    # These load torch, which takes seconds.
    from mest_fed.cli.planning.answer import Wanted, answer
    from mest_fed.cli.planning.request import read_request
    from mest_fed.cli.planning.round_time import Deadline

    due = None if seconds is None else Deadline(seconds, examples)
    wanted = Wanted(memory, device, threads, as_json, picture, due)
    answer(read_request((preset, config), options, settings or [], (image, classes)), wanted)
