"""The report's tables of rounds, layers and kernels, and its headline numbers."""

from dataclasses import dataclass
from typing import Literal

from mest_fed.run_rows.rounds import RoundRow
from mest_fed.schema import LOSS, Metric, TaskStatus
from mest_fed.simulation.report.formats import (
    count_of,
    format_count,
    format_joules,
    format_known_joules,
    format_metric,
    format_percent,
    format_watt_hours,
)
from mest_fed.simulation.report.runs import KernelRow, Kernels, Run
from mest_fed.simulation.report.statistics import Traffic, status_counts, traffic
from mest_fed.units import format_bytes, format_seconds

#: Rounds that the page shows before all are unfolded.
LAST_ROUNDS = 5
NOTHING = "—"


def round_columns(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the headings of :func:`round_rows`."""
    return (
        ("round", ""),
        (run.summary.primary_metric.name, "measured"),
        ("clients' median", "measured"),
        ("loss", "measured"),
        ("training loss", "measured"),
        ("density", "measured"),
        ("up", "measured"),
        ("down", "measured"),
        ("updates", "measured"),
        ("no result", "measured"),
        ("rejected", "measured"),
        (run.clock.name, run.clock.basis),
        ("energy", "modelled"),
    )


def round_rows(run: Run) -> list[tuple[str, ...]]:
    """Format all rounds in the columns of :func:`round_columns`."""
    metric = run.summary.primary_metric
    return [_round_cells(row, metric) for row in run.rounds]


def _round_cells(row: RoundRow, metric: Metric) -> tuple[str, ...]:
    central, clients = row.value(metric), row.spread(metric)
    write = "{:.2%}" if metric.share else "{:.4g}"
    return (
        str(row.round),
        NOTHING if central is None else write.format(central),
        NOTHING if clients is None else write.format(clients.median),
        NOTHING if (loss := row.metrics.get(LOSS.name, row.loss)) is None else f"{loss:.4f}",
        NOTHING if row.train_loss is None else f"{row.train_loss:.4f}",
        format_percent(row.density),
        format_bytes(row.bytes_up),
        format_bytes(row.bytes_down),
        str(row.trained),
        str(row.failed),
        str(row.rejected),
        format_seconds(row.virtual_seconds),
        format_known_joules(row.energy_joules),
    )


def client_columns(run: Run) -> tuple[tuple[str, str], ...]:
    """Return the headings of :func:`client_rows`, after the client's number."""
    metric = run.summary.primary_metric.name
    return (("device", ""), ("held-out examples", ""), ("round", ""), (metric, "measured"))


def client_rows(run: Run) -> list[tuple[str, ...]]:
    """Format the last evaluation of each client, the worst first; empty where none evaluated."""
    metric = run.summary.primary_metric
    titles = {tier.profile: tier.title for tier in run.summary.tiers}
    last = {
        score.partition: (row.round, score) for row in run.rounds for score in row.client_scores
    }
    sign = 1 if metric.higher_is_better else -1
    ordered = sorted(last.values(), key=lambda item: (sign * item[1].value, item[1].partition))
    return [
        (
            str(score.partition),
            titles.get(score.device, score.device),
            format_count(score.examples),
            str(number),
            format_metric(metric, score.value),
        )
        for number, score in ordered
    ]


LAYER_COLUMNS = (("weights", ""), ("density", "measured"), ("dense because", ""))


def layer_rows(run: Run) -> list[tuple[str, ...]]:
    """Format each layer, in the columns of ``LAYER_COLUMNS`` after its name."""
    return [
        (
            layer.name,
            format_count(layer.weights),
            format_percent(layer.density),
            layer.reason or "",
        )
        for layer in run.summary.layers
    ]


_PRODUCTS = {
    "forward": "forward",
    "backward_input": "gradient of input",
    "backward_values": "gradient of values",
}
_HOW = {
    "rule": "Chosen by shape and density; nothing was timed",
    "tuned": "Timed before the first round, one thread; the fastest was chosen",
    "dense": "Dense weights everywhere, as configured",
}


@dataclass(frozen=True)
class KernelTable:
    """The table, formatted; a cell is an implementation and its time."""

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def kernel_table(run: Run) -> KernelTable | None:
    """Format ``kernels.json``; None where no sparse layer had a choice."""
    kernels = run.kernels
    if kernels is None or not kernels.rows:
        return None
    basis = "measured" if any(row.milliseconds for row in kernels.rows) else ""
    columns = [("input", ""), ("density up to", "")]
    columns += [(title, basis) for title in _PRODUCTS.values()]
    rows = tuple((", ".join(row.layers), _cells(row)) for row in kernels.rows)
    return KernelTable(_caption(kernels), tuple(columns), rows)


def _caption(kernels: Kernels) -> str:
    how = _HOW.get(kernels.mode, kernels.mode)
    compiled = f"compiled for {kernels.variant}" if kernels.variant else "not compiled"
    return (
        f"{how}. dense: a dense weight for the moment; channels: the active channels alone; "
        f"padded, shifted: sparse kernels ({compiled})"
    )


def _cells(row: KernelRow) -> tuple[tuple[str, str], ...]:
    height, width = row.case.size
    facts = [(f"{height}\N{MULTIPLICATION SIGN}{width}", ""), (format_percent(row.case.band), "")]
    return (*facts, *(_choice(row, product) for product in _PRODUCTS))


def _choice(row: KernelRow, product: str) -> tuple[str, str]:
    """Return the implementation, and its time beside the others'."""
    chosen, times = row.choice.get(product, ""), row.milliseconds.get(product, {})
    if chosen not in times:
        return chosen, ""
    others = (f"{name} {times[name]:.3g}" for name in times if name != chosen)
    return chosen, ", ".join([f"{times[chosen]:.3g} ms", *others])


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
        _metric(run),
        _density(run),
        Tile("Traffic", format_bytes(sent.total), "measured", _traffic_notes(sent)),
        _tasks(run),
        _virtual_time(run),
        _wall_time(run),
        _energy(run),
        _over_budget(run),
    ]


def _metric(run: Run) -> Tile:
    metric, last = run.summary.primary_metric, run.last_spread
    central, label = run.summary.final_value, f"Final {metric.name}"
    number, clients = (0, None) if last is None else last
    notes: tuple[str, ...] = ()
    if clients is not None:
        which = "" if number == _round_of_model(run) else f", round {number}"
        notes = (
            f"clients{which}: median {format_metric(metric, clients.median)}",
            f"p10 {format_metric(metric, clients.p10)}, p90 {format_metric(metric, clients.p90)}",
        )
    if run.summary.diverged_round is not None:
        return Tile(label, NOTHING, "measured", ("not finite: the run diverged",), alarm=True)
    if central is not None:
        return Tile(label, format_metric(metric, central), "measured", notes)
    if clients is not None:
        notes = (f"median of clients{which}; no central test set", *notes[1:])
        return Tile(label, format_metric(metric, clients.median), "measured", notes)
    return Tile(label, NOTHING, "measured", ("not evaluated in this run",))


def _round_of_model(run: Run) -> int:
    kept = run.summary.kept_round
    return run.summary.rounds if kept is None else kept


def _density(run: Run) -> Tile:
    layers = run.summary.layers
    weights = sum(layer.weights for layer in layers)
    active = sum(round(layer.weights * layer.density) for layer in layers)
    notes: tuple[str, ...] = (
        f"target {format_percent(run.summary.target_density)}, over sparse layers",
        f"{format_count(active)} of {format_count(weights)} weights are active in all layers",
    )
    if any(row.density > 1.01 * run.summary.target_density for row in run.rounds):
        notes += ("above it in rounds in which weights had grown and none were removed yet",)
    return Tile("Achieved density", format_percent(run.summary.achieved_density), "measured", notes)


def _traffic_notes(sent: Traffic) -> tuple[str, ...]:
    directions = f"{format_bytes(sent.up)} up, {format_bytes(sent.down)} down"
    saving = sent.saving
    if saving is None:
        return (directions,)
    training = f"training: {format_bytes(sent.training)}"
    dense = f"dense fp32 ({format_bytes(sent.dense)})"
    if saving >= 1.05:
        return directions, f"{training}, {saving:.3g} times less than {dense}"
    if saving <= 0.95:
        return directions, f"{training}, {1 / saving:.3g} times more than {dense}"
    return directions, f"{training}, about as much as {dense}"


def _tasks(run: Run) -> Tile:
    counts = status_counts(run)
    accepted = counts.pop(TaskStatus.OK)
    lost = ", ".join(f"{format_count(count)} {status}" for status, count in counts.items() if count)
    notes = (f"of {count_of(len(run.tasks), 'task')}", lost or "none was lost")
    return Tile("Updates accepted", format_count(accepted), "measured", notes, alarm=not accepted)


def _virtual_time(run: Run) -> Tile:
    seconds = run.summary.virtual_seconds
    notes: tuple[str, ...] = ("on the devices' own clocks",)
    if run.summary.rounds:
        notes += (f"{format_seconds(seconds / run.summary.rounds)} a round",)
    if run.summary.deployed:
        return Tile("Time", format_seconds(seconds), "measured", ("of real devices", *notes[1:]))
    return Tile("Virtual time", format_seconds(seconds), "modelled", notes)


def _wall_time(run: Run) -> Tile:
    seconds = run.summary.wall_seconds
    notes: tuple[str, ...] = ("of the simulation itself",)
    if run.summary.deployed:
        return Tile("Wall time", format_seconds(seconds), "measured", ("on the server",))
    if 0 < seconds < run.summary.virtual_seconds:
        ratio = run.summary.virtual_seconds / seconds
        notes += (f"{ratio:.3g} times faster than virtual",)
    return Tile("Wall time", format_seconds(seconds), "measured", notes)


def _energy(run: Run) -> Tile:
    joules, without = run.summary.energy_joules, run.summary.without_power
    if joules is None:
        return Tile("Energy", "unknown", "modelled", ("no device's power is known",))
    whole = f"without {count_of(without, 'device')} of unknown power" if without else "whole fleet"
    notes: tuple[str, ...] = (f"{format_watt_hours(joules)}, {whole}",)
    if run.summary.clients_trained and not without:
        notes += (f"{format_joules(joules / run.summary.clients_trained)} per accepted update",)
    return Tile("Energy", format_joules(joules), "modelled", notes)


def _over_budget(run: Run) -> Tile:
    over = run.summary.over_budget
    note = "times a client went over its budget" if over else "no client went over its budget"
    return Tile("Over budget", format_count(over), "measured", (note,), alarm=over > 0)
