"""A plan as people read it in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mest_fed.cli.planning.frontier import CAVEAT, format_multiple
from mest_fed.cli.planning.report import FleetReport, PlanReport
from mest_fed.memory import Plan
from mest_fed.nn import LayerDensity
from mest_fed.units import format_bytes, format_seconds, number_of, plural

#: Wider text is hard to read.
_WIDEST = 100

_PARTS = {
    "values": "active weights, dense parameters, buffers",
    "gradients": "of the values",
    "optimizer": "momentum, moments, FedProx's reference",
    "index": "which weights are active",
    "activations": "kept of a micro-batch for backward",
    "workspace": "what exists for a moment",
    "batch": "inputs and targets of a step",
    "wire": "the received message and its state",
    "runtime": "allocator, Python, autograd",
}
#: What a plan takes that has no column of its own, as a phrase.
_TAKES = {"momentum": "no momentum", "frozen": "freezes {} {}"}


def print_report(report: PlanReport, console: Console | None = None) -> None:
    """Print the plan in words, its bytes by part, its step time, and what else fits."""
    console = console or Console()
    width = min(console.width, _WIDEST)
    plan = report.plan  # if nothing fits, nothing is printed

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, width=width, highlight=False, markup=False)

    say(report.request.title, "bold")
    if report.budget.origin:
        say(report.budget.origin)
    say("")
    say(plan.in_words(report.request.task.divided))
    say("")
    console.print(_parts(plan), width=width)
    say("")
    console.print(layer_table(report.request.task.layers), width=width)
    if report.profile is not None:
        say(f"\n{_time(report)}")
    if report.round is not None:
        say(f"\n{report.round.in_words(plan, report.of_budget, report.wished)}")
    if report.runners_up:
        say("")
        console.print(_others(report), width=width)
        say(
            f"\nTo take one of them, give --prefer with the knob that it spares last. {CAVEAT}",
            "dim",
        )
    else:
        say(f"\n{_alone(report)}")
        say(f"\n{CAVEAT}" if report.profile is not None else "", "dim")
    if report.room is not None:
        say(f"\n{report.room.in_words()}")


def print_fleet(report: FleetReport, console: Console | None = None) -> None:
    """Print the plan of each device of a fleet, a line each, and the layers of all of them."""
    console = console or Console()
    width = min(console.width, _WIDEST)
    table = _table("What each device of the fleet trains with (modelled)")
    table.add_column("device", no_wrap=True)
    for heading in ("number", "budget", "peak", "step", "micro-batch", "density"):
        table.add_column(heading, justify="right", no_wrap=heading != "micro-batch")
    table.add_column("gives up, too")
    for device in report.devices:
        plan, seconds = device.plan, report.clock(device).seconds(device.plan.shape)
        table.add_row(
            device.profile.name,
            str(device.count),
            format_bytes(plan.budget),
            format_bytes(plan.footprint.total),
            "" if seconds is None else format_seconds(seconds),
            str(plan.micro_batch),
            f"{plan.density:.3g}",
            "; ".join(plan.measures()),
        )
    console.print(report.request.title, style="bold", width=width, highlight=False, markup=False)
    console.print("")
    console.print(table, width=console.width)
    console.print("")
    console.print(layer_table(report.request.task.layers), width=width)
    hint = f"\nFor one of them in detail, give --device. {CAVEAT}"
    console.print(hint, style="dim", width=width, highlight=False, markup=False)


def _parts(plan: Plan) -> Table:
    table = _table("Bytes that training adds to the process (modelled)")
    table.add_column("part", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("what", style="dim")
    total = plan.footprint.total
    for name, size in plan.footprint.parts().items():
        table.add_row(name, format_bytes(size), f"{size / total:.0%}", _PARTS.get(name, ""))
    share = f"{total / plan.budget:.0%} of the budget, {format_bytes(plan.budget)}"
    table.add_row("predicted peak", format_bytes(total), "", share, style="bold")
    return table


def layer_table(rows: Sequence[LayerDensity]) -> Table:
    """Tabulate which layers are sparse, and why the others are dense; one row a reason."""
    table = _table("Layers")
    table.add_column("", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("layers", overflow="fold")
    table.add_column("why", style="dim")
    total = sum(row.weights for row in rows)
    for reason in dict.fromkeys(row.reason for row in sorted(rows, key=lambda it: bool(it.reason))):
        some = [row for row in rows if row.reason is reason]
        weights = sum(row.weights for row in some)
        names = some[0].name or some[0].kind
        names += f" and {len(some) - 1} more" if len(some) > 1 else ""
        kind = "sparse" if reason is None else "dense"
        table.add_row(kind, f"{weights:,}", f"{weights / max(1, total):.0%}", names, reason or "")
    return table


def _time(report: PlanReport) -> str:
    profile, shape = report.profile, report.plan.shape
    seconds = report.clock.seconds(shape)
    assert profile is not None
    assert seconds is not None
    step, took = f"A step of {number_of(shape.batch, 'example')}", format_seconds(seconds)
    text = f"{step} takes {took} on {profile.title} (modelled)"
    plain = report.clock.seconds(report.wished)
    assert plain is not None
    if abs(plain - seconds) >= 0.01 * plain:
        return f"{text}; with nothing given up it would take {format_seconds(plain)}."
    return f"{text}, no longer than it would with nothing given up."


def _others(report: PlanReport) -> Table:
    table = _table(f"What else fits into {format_bytes(report.plan.budget)} (modelled)")
    columns = ("spares", "peak", "micro-batch", "recomputes", "saved", "density", "step time")
    for heading in columns:
        justify = "left" if heading in ("spares", "recomputes", "saved") else "right"
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_row("(the plan)", *_cells(report, report.plan))
    for other in report.runners_up:
        table.add_row(_differs(report, other), *_cells(report, other))
    return table


def _cells(report: PlanReport, plan: Plan) -> list[str]:
    seconds = report.clock.seconds(plan.shape)
    against = format_multiple(report.clock.against(plan.shape, report.plan.shape))
    return [
        format_bytes(plan.footprint.total),
        str(plan.micro_batch),
        plan.memory.recompute,
        plan.memory.saved,
        f"{plan.density:.3g}",
        against if seconds is None else f"{format_seconds(seconds)} {against}",
    ]


def _differs(report: PlanReport, other: Plan) -> str:
    """Say what another plan spares, and what it takes that has no column."""
    spares = [name for name in report.spared(other) if name != "release_gradients"]  # costs nothing
    takes = [name for name in report.pulled_further(other) if name in _TAKES]
    frozen = other.memory.frozen
    phrases = ", ".join(_TAKES[name].format(frozen, plural(frozen, "block")) for name in takes)
    return ", ".join(spares) + (f" ({phrases})" if phrases else "")


def _alone(report: PlanReport) -> str:
    if report.plan.shape == report.wished:
        return "All of it fits as wished: the plan gives nothing up."
    return "Nothing else fits that would spare what the plan gives up."


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim"
    )
