"""A study's raw results: one row a cell, and one row a cell and round."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mest_fed.config import RunConfig
from mest_fed.run_rows.summary import Tier
from mest_fed.schema import LOSS, Metric
from mest_fed.simulation.report.figures.metric import Curve
from mest_fed.simulation.report.runs import Run
from mest_fed.simulation.study.grid import Cell
from mest_fed.simulation.study.protocols import Protocol
from mest_fed.training import objective_of

#: How a cell stands: its run has ended; ended and came to nothing; broke off; never began.
DONE, FAILED, INTERRUPTED, NOT_RUN = "done", "failed", "interrupted", "not run"

#: Columns of a cell's row after its axes, in order; those of the protocol come before ``run``.
_OF_METRIC = ("metric", "higher_is_better", "share")
_OF_CELL = ("status", "reason")
_OF_RUN = (
    "final",
    "best",
    "loss",
    "density_reached",
    "rounds_done",
    "predicted_peak_bytes",
    "measured_peak_bytes",
    "peak_bytes",
    "bytes_up",
    "bytes_down",
    "traffic_bytes",
    "virtual_seconds",
    "wall_seconds",
    "energy_joules",
    "updates",
    "failed_tasks",
    "model_sha256",
)
_OF_CONFIG = ("run", "digest")
#: Names that no axis may have.
COLUMNS = ("cell", *_OF_CELL, *_OF_METRIC, *_OF_RUN, *_OF_CONFIG)


@dataclass(frozen=True)
class KnownRun:
    """The rows of a run that was computed elsewhere.

    Parameters
    ----------
    row : mapping
        Of the run's first cell.
    rounds : sequence of mapping
        One a round.
    """

    row: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Parameters
    ----------
    cell : Cell
        Which.
    status : str
        How it stands.
    reason : str
        Why it failed, in one line; empty otherwise.
    run : Run or None
        Its run, if it has ended here.
    known : KnownRun or None
        What a record has of it instead.
    """

    cell: Cell
    status: str = NOT_RUN
    reason: str = ""
    run: Run | None = None
    known: KnownRun | None = None


def metric_of(config: RunConfig) -> Metric:
    """Return the primary metric of a run that has not begun."""
    return objective_of(config.task.name, config.task.options).primary


def result_rows(results: Sequence[Result], protocol: Protocol) -> list[dict[str, Any]]:
    """Return a row for each cell; what a run that has not ended would say is None."""
    numbers = {
        name: all(not isinstance(each.cell.values[name], str) for each in results)
        for name in results[0].cell.values
    }
    return [_row(each, protocol, numbers) for each in results]


def _row(result: Result, protocol: Protocol, numbers: dict[str, bool]) -> dict[str, Any]:
    cell, run = result.cell, result.run
    axes = {n: cell.values[n] if number else cell.labels[n] for n, number in numbers.items()}
    metric = metric_of(cell.config)
    said = {"metric": metric.name, "higher_is_better": metric.higher_is_better}
    if run is not None:
        found = _of_run(run) | protocol.measure(run)
    else:
        known = {} if result.known is None else result.known.row
        found = {key: known.get(key) for key in (*_OF_RUN, *protocol.columns())}
    return {
        "cell": cell.id,
        **axes,
        "status": result.status,
        "reason": result.reason,
        **said,
        "share": metric.share,
        **found,
        "run": cell.run,
        "digest": cell.digest,
    }


def _of_run(run: Run) -> dict[str, Any]:
    summary, curve = run.summary, Curve.of(run)
    final, best = summary.final_value, None
    if curve is not None:
        best = curve.values[curve.best]
        final = curve.values[-1] if final is None and not curve.central else final
    predicted = max((tier.predicted_peak_bytes for tier in summary.tiers), default=None)
    measured = _measured(summary.tiers)
    found = (
        final,
        best,
        summary.final_metrics.get(LOSS.name),
        summary.achieved_density,
        summary.rounds,
        predicted,
        measured,
        predicted if measured is None else measured,
        summary.bytes_up,
        summary.bytes_down,
        summary.bytes_up + summary.bytes_down,
        summary.virtual_seconds,
        summary.wall_seconds,
        summary.energy_joules,
        summary.clients_trained,
        summary.clients_failed,
        summary.model_sha256,
    )
    return dict(zip(_OF_RUN, found, strict=True))


def _measured(tiers: Sequence[Tier]) -> int | None:
    sizes = [tier.measured_peak_bytes for tier in tiers]
    return max(filter(None, sizes)) if sizes and all(sizes) else None


def round_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return a row for each round of each cell whose run has ended; sums are since the start."""
    rows: list[dict[str, Any]] = []
    for result in results:
        cell = {"cell": result.cell.id, **result.cell.labels}
        if result.known is not None:
            rows += [_named(cell, row) for row in result.known.rounds]
        if (run := result.run) is None:
            continue
        curve = Curve.of(run)
        values = {} if curve is None else {row.round: value for row, value in curve.points}
        up = accumulate(row.bytes_up for row in run.rounds)
        down = accumulate(row.bytes_down for row in run.rounds)
        joules = accumulate(row.energy_joules or 0.0 for row in run.rounds)
        for row, so_far_up, so_far_down, spent in zip(run.rounds, up, down, joules, strict=True):
            rows.append(
                {
                    **cell,
                    "round": row.round,
                    "value": values.get(row.round),
                    "loss": row.metrics.get(LOSS.name),
                    "train_loss": row.train_loss,
                    "density_reached": row.density,
                    "bytes_up": so_far_up,
                    "bytes_down": so_far_down,
                    "virtual_seconds": row.virtual_seconds,
                    "wall_seconds": row.wall_seconds,
                    "energy_joules": spent,
                    "updates": row.trained,
                    "failed_tasks": row.failed,
                }
            )
    return rows


def _named(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's row of a round as one of a cell that may have other axes."""
    columns = list(row)  # the axes stand before the round
    return dict(cell) | {key: row[key] for key in columns[columns.index("round") :]}
