"""The headline numbers, each with where it comes from."""

from dataclasses import dataclass
from typing import Literal

from mest_fed.schema import TaskStatus
from mest_fed.units import format_bytes, format_seconds
from simulations.report.formats import (
    count_of,
    format_count,
    format_joules,
    format_percent,
    format_watt_hours,
)
from simulations.report.schema import Run
from simulations.report.totals import Traffic, status_counts, traffic


@dataclass(frozen=True)
class Tile:
    """One headline number with a line or two beneath it."""

    label: str
    value: str
    basis: Literal["measured", "modelled"]
    notes: tuple[str, ...] = ()
    alarm: bool = False


def headline_tiles(run: Run) -> list[Tile]:
    """Build the tiles in reading order."""
    sent = traffic(run)
    return [
        _accuracy(run),
        _density(run),
        Tile("Traffic", format_bytes(sent.total), "measured", _traffic_notes(sent)),
        _tasks(run),
        _virtual_time(run),
        _wall_time(run),
        _energy(run),
        _over_budget(run),
    ]


def _accuracy(run: Run) -> Tile:
    central = run.summary.final_accuracy
    clients = run.summary.final_client_accuracy
    notes: tuple[str, ...] = ()
    if clients is not None:
        notes = (
            f"clients: median {format_percent(clients.median)}",
            f"p10 {format_percent(clients.p10)}, p90 {format_percent(clients.p90)}",
        )
    if central is not None:
        return Tile("Final accuracy", format_percent(central), "measured", notes)
    if clients is not None:
        notes = ("median of clients; no central test set", *notes[1:])
        return Tile("Final accuracy", format_percent(clients.median), "measured", notes)
    return Tile("Final accuracy", "—", "measured", ("not evaluated in this run",))


def _density(run: Run) -> Tile:
    layers = run.summary.layers
    weights = sum(layer.weights for layer in layers)
    live = sum(round(layer.weights * layer.density) for layer in layers)
    notes = (
        f"target {format_percent(run.summary.target_density)}, over sparse layers",
        f"{format_count(live)} of {format_count(weights)} weights live in all layers",
    )
    return Tile("Achieved density", format_percent(run.summary.achieved_density), "measured", notes)


def _traffic_notes(sent: Traffic) -> tuple[str, ...]:
    directions = f"{format_bytes(sent.up)} up, {format_bytes(sent.down)} down"
    saving = sent.saving
    if saving is None:
        return (directions,)
    dense = f"sending dense fp32 ({format_bytes(sent.dense)})"
    if saving >= 1.05:
        return directions, f"{saving:.3g} times less than {dense}"
    if saving <= 0.95:
        return directions, f"{1 / saving:.3g} times more than {dense}"
    return directions, f"about as much as {dense}"


def _tasks(run: Run) -> Tile:
    counts = status_counts(run)
    accepted = counts.pop(TaskStatus.OK)
    lost = ", ".join(f"{format_count(count)} {status}" for status, count in counts.items() if count)
    notes = (f"of {count_of(len(run.tasks), 'task')} given to devices", lost or "none was lost")
    return Tile("Updates accepted", format_count(accepted), "measured", notes, alarm=not accepted)


def _virtual_time(run: Run) -> Tile:
    seconds = run.summary.virtual_seconds
    notes: tuple[str, ...] = ("on the devices' own clocks",)
    if run.summary.rounds:
        notes += (f"{format_seconds(seconds / run.summary.rounds)} a round",)
    return Tile("Virtual time", format_seconds(seconds), "modelled", notes)


def _wall_time(run: Run) -> Tile:
    seconds = run.summary.wall_seconds
    notes: tuple[str, ...] = ("of the simulation itself",)
    if 0 < seconds < run.summary.virtual_seconds:
        ratio = run.summary.virtual_seconds / seconds
        notes += (f"{ratio:.3g} times faster than virtual",)
    return Tile("Wall time", format_seconds(seconds), "measured", notes)


def _energy(run: Run) -> Tile:
    joules = run.summary.energy_joules
    notes: tuple[str, ...] = (f"{format_watt_hours(joules)}, whole fleet",)
    if run.summary.clients_trained:
        notes += (f"{format_joules(joules / run.summary.clients_trained)} per accepted update",)
    return Tile("Energy", format_joules(joules), "modelled", notes)


def _over_budget(run: Run) -> Tile:
    over = run.summary.over_budget
    note = "times a client went over its budget" if over else "no client went over its budget"
    return Tile("Over budget", format_count(over), "measured", (note,), alarm=over > 0)
