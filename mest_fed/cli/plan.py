"""``mest-fed plan``."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mest_fed.devices import load_profile
from mest_fed.memory import Plan, Planner, Setting, TrainingShape, Wish, trace_model
from mest_fed.memory.activations import segments_of
from mest_fed.nn import build_shell
from mest_fed.sparsity import build_method
from mest_fed.units import format_bytes, parse_bytes


def plan(
    model: Annotated[
        str, typer.Option(help="resnet8, resnet18, resnet20, resnet32 or cnn2.")
    ] = "resnet32",
    budget: Annotated[
        str | None, typer.Option(help="Bytes that training may add, such as 24MB.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Take the budget of this device profile.")
    ] = None,
    width: Annotated[float, typer.Option(help="Factor on the channel counts.")] = 2.0,
    norm: Annotated[str, typer.Option(help="batch or group.")] = "group",
    scheme: Annotated[str, typer.Option(help="Sparsity scheme.")] = "block",
    density: Annotated[float, typer.Option(help="Target density.")] = 0.1,
    method: Annotated[str, typer.Option(help="Sparse-training method.")] = "mest-ems",
    batch: Annotated[int, typer.Option(help="Images in one optimizer step.", min=1)] = 64,
    image: Annotated[str, typer.Option(help="CHANNELSxHEIGHTxWIDTH.")] = "3x32x32",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan training within a memory budget. All bytes are modelled."""
    limit = _budget(budget, device)
    shape = _image_shape(image)
    net = build_shell(
        model, shape, classes, width=width, norm=norm, scheme=None if method == "dense" else scheme
    )
    wish = TrainingShape(1.0 if method == "dense" else density, "uniform", batch, batch)
    batch_statistics = norm == "batch"
    planner = Planner(
        trace_model(net, shape),
        Setting(build_method(method, density)),
        Wish(
            wish,
            8 if batch_statistics else 1,
            len(segments_of(net)),
            sparse=method != "dense",
            batch_statistics=batch_statistics,
        ),
    )
    chosen = planner.plan(limit)
    if as_json:
        typer.echo(json.dumps(chosen.as_table(), indent=2))
    else:
        Console().print(_table(chosen, f"{model} (width {width:g}), {method}, {scheme}"))
        Console().print(chosen.in_words(), highlight=False)


def _budget(budget: str | None, device: str | None) -> int:
    from mest_fed.errors import InputError

    if (budget is None) == (device is None):
        raise InputError("plan needs a budget; allowed: either --budget BYTES or --device NAME")
    if budget is not None:
        return parse_bytes(budget, "--budget")
    return load_profile(str(device)).budget_bytes


def _image_shape(text: str) -> tuple[int, int, int]:
    from mest_fed.errors import not_allowed

    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise not_allowed("--image", text, "CHANNELSxHEIGHTxWIDTH, such as 3x32x32")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _table(plan: Plan, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("part")
    table.add_column("bytes (modelled)", justify="right")
    table.add_column("share", justify="right")
    total = plan.footprint.total
    for name, size in plan.footprint.parts().items():
        table.add_row(name, format_bytes(size), f"{size / total:.0%}")
    table.add_section()
    table.add_row("[bold]predicted peak", format_bytes(total), f"of {format_bytes(plan.budget)}")
    return table
