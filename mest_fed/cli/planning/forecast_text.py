"""A run that does not start, as people read it."""

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mest_fed.cli.planning.forecast import DeviceForecast, RunForecast
from mest_fed.cli.planning.traffic import Traffic
from mest_fed.cli.tables import fill_table
from mest_fed.simulation.engine.machine import (
    BASE_BYTES,
    WORKER_BYTES,
    default_workers,
    free_memory,
)
from mest_fed.units import format_bytes, format_seconds, number_of

#: Wider text is hard to read; a pipe has no width of its own.
_WIDEST = 120
_CAVEAT = (
    "Modelled: peaks, bytes and virtual time, of devices that are all there and reply, without "
    "jitter and stragglers. Times are means over cohorts drawn uniformly. A round is at the "
    "density of the plans; all rounds count the density that the method grows to before its last "
    "stage, and evaluations on devices. Masks go to devices that lack them, and come back where "
    "clients mutate. A run measures each peak before its first round."
)


def print_forecast(
    forecast: RunForecast,
    workers: int | None,
    address: str | None,
    console: Console | None = None,
) -> None:
    """Print what a run would be: its facts, each kind of device, bytes and time.

    Parameters
    ----------
    forecast : RunForecast
        The run.
    workers : int or None
        Processes that it would start; None: as many as this machine has room for.
    address : str or None
        Ray cluster that it would join.
    console : Console, optional
        Where it is printed.
    """
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_WIDEST)
    width = min(console.width, _WIDEST)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column("what", style="dim", no_wrap=True)
    facts.add_column("value", overflow="fold")
    rows = {
        "run": _rounds(forecast),
        "data": _data(forecast),
        "model": forecast.run.fleet.nobody_trains(forecast.task) or "",
        "steps": _steps(forecast),
        "memory": _saved(forecast),
        "workers": _workers(workers, address),
        "folder": str(forecast.run.folder.path),
        "time": _time(forecast),
    }
    for what, value in rows.items():
        if value:
            facts.add_row(what, Text(value))
    console.print(Text(forecast.title, style="bold"), width=width)
    console.print()
    console.print(facts, width=width)
    console.print()
    console.print(_devices(forecast, width), width=width)
    console.print()
    console.print(_totals(forecast), width=width)
    console.print()
    console.print(Text(_CAVEAT, style="dim"), width=width)
    console.print(Text("Nothing was started; without --dry-run the run begins."), width=width)


def _rounds(forecast: RunForecast) -> str:
    config, left = forecast.config, len(forecast.rounds)
    server, devices = config.server, number_of(config.fleet.devices, "device")
    rounds = number_of(left, "round")
    if forecast.done:
        rounds = f"{rounds} left of {config.run.rounds:,}"
    if server.stop_when:
        rounds = f"at most {rounds}, until {server.stop_when}"
    if server.mode in ("buffered", "semi-sync"):
        how = f"of {devices}, {server.concurrency:,} train at a time ({server.mode})"
    elif forecast.asked is None:
        how = f"{devices}, asked by {server.mode}"
    else:
        how = f"each asks {forecast.asked:,} of {devices}"
        if forecast.asked > server.clients_per_round:
            how += f" and takes the first {server.clients_per_round:,}"
    return f"{rounds}; {how}; chosen: {server.selection}; seed {config.run.seed}"


def _data(forecast: RunForecast) -> str:
    config, data = forecast.config.data, forecast.task.data
    counts = forecast.examples
    least, middle, most = int(counts.min()), float(np.median(counts)), int(counts.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,} (median {middle:g})"
    held = f", beside {config.hold_out:.0%} held out" if config.hold_out else ""
    return (
        f"{config.name}: {number_of(len(data.train), 'example')} to train, {len(data.test):,} to "
        f"test; shared out by {config.partition}: {each} a device{held}"
    )


def _steps(forecast: RunForecast) -> str:
    if forecast.why_torch is not None:
        return forecast.why_torch
    by_torch = [each.device.name for each in forecast.devices if not each.compiled]
    if not by_torch:
        return "compiled programs on all devices"
    if len(by_torch) == len(forecast.devices):
        return "torch on all devices"
    return f"compiled programs; torch on {', '.join(by_torch)}"


def _saved(forecast: RunForecast) -> str:
    """Say what plans do to fit, beside density and micro-batch."""
    saving = {each.device.name: each.device.plan.measures() for each in forecast.devices}
    return "; ".join(f"{name}: {', '.join(said)}" for name, said in saving.items() if said)


def _workers(workers: int | None, address: str | None) -> str:
    if workers == 0:
        return "none: clients run in this process"
    count = default_workers() if workers is None else workers
    if address is not None:
        return f"{count:,} on the Ray cluster {address}"
    needed = format_bytes(BASE_BYTES + count * WORKER_BYTES)
    return (
        f"{number_of(count, 'worker')} of Ray; with this process about {needed} before training, "
        f"of {format_bytes(free_memory())} that are free"
    )


def _time(forecast: RunForecast) -> str:
    """Say in virtual time when a round ends."""
    server, deadline = forecast.config.server, forecast.config.fleet.deadline
    longest = max(forecast.devices, key=lambda each: each.seconds.max())
    slowest = f"{format_seconds(longest.seconds.max())}, the slowest ({longest.device.name})"
    if server.mode == "semi-sync":
        said = f"a round ends every {format_seconds(server.period)}; a task takes up to {slowest}"
    elif forecast.round_seconds is None:
        said = f"a task takes up to {slowest}"
    else:
        said = f"a round waits for all whom it asks, up to {slowest}"
    late = [it.device.name for it in forecast.devices if it.seconds.max() > deadline]
    if deadline and late:
        said += f"; not all of {', '.join(late)} meet the deadline of {format_seconds(deadline)}"
    return said


def _totals(forecast: RunForecast) -> Table:
    """Return a table of traffic and time of a round, or of a task, and of all rounds."""
    table = _table("What it comes to")
    timed = forecast.round_seconds is not None
    for heading in ("", "up", "down", "masks at most", *(["virtual time"] if timed else [])):
        words = "\n".join(heading.split(maxsplit=1))
        table.add_column(words, justify="right" if heading else "left", no_wrap=True)
    rows = (
        ("a task (mean)", forecast.task_traffic, None),
        ("a round", forecast.round_traffic, forecast.round_seconds),
        (number_of(len(forecast.rounds), "round"), forecast.run_traffic, forecast.run_seconds),
    )
    for what, traffic, seconds in rows:
        took = [] if seconds is None else [format_seconds(seconds)]
        if traffic is not None:
            table.add_row(what, *_amounts(traffic), *took)
    return table


def _amounts(traffic: Traffic) -> list[str]:
    return [format_bytes(amount) for amount in (traffic.up, traffic.down, traffic.masks)]


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim"
    )


def _devices(forecast: RunForecast, width: int) -> Table:
    """Return a table of the kinds of devices, without the last columns where there is no room."""
    rows = [_columns(each) for each in forecast.devices]
    table = _table("What each device trains with")
    fill_table(table, rows, width, left=("device", "gives up"))
    return table


def _columns(each: DeviceForecast) -> dict[str, str]:
    plan, counts, seconds = each.device.plan, each.examples, each.seconds
    return {
        "device": each.device.name,
        "number": f"{each.device.count:,}",
        "budget": format_bytes(plan.budget),
        "predicted peak": format_bytes(plan.footprint.total),
        "micro batch": f"{plan.micro_batch}",
        "density": f"{plan.density:.3g}",
        "virtual time": _from_to(format_seconds(seconds.min()), format_seconds(seconds.max())),
        "examples": _from_to(f"{counts.min():,}", f"{counts.max():,}"),
        "trained by": "program" if each.compiled else "torch",
        "up": format_bytes(each.traffic.up),
        "down": format_bytes(each.traffic.down),
    }


def _from_to(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"
