"""A run's tables as plain rows, for CSV and other formats."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mest_fed.run_rows.rounds import APP_CLIENTS_LACK, OUR_CLIENTS_LACK, SIMULATED_LACK, ClientRow
from mest_fed.run_rows.row import Row
from mest_fed.simulation.report.load import load_run
from mest_fed.simulation.report.runs import AppRun, Run


def run_tables(folder: Path) -> dict[str, list[Row]]:
    """Return a run's tables as plain rows: rounds, clients, tiers and, of ours, layers.

    An unfinished run's are those up to its newest checkpoint. Of ours also, where the run has
    them: nodes, evaluations, labels and changes from the preset.

    Raises
    ------
    InputError
        As :func:`~mest_fed.simulation.report.load.load_run`.
    """
    run = load_run(folder, unfinished=True)
    tables: dict[str, Sequence[Any]] = {
        "rounds": run.rounds,
        "clients": run.tasks,
        "tiers": run.summary.tiers,
    }
    if isinstance(run, AppRun):
        left_out = APP_CLIENTS_LACK
    else:
        real = any(task.reported is not None for task in run.tasks)
        tables["layers"] = run.summary.layers
        if run.summary.nodes:
            tables["nodes"] = run.summary.nodes
        left_out = OUR_CLIENTS_LACK if real else SIMULATED_LACK
    plain = {name: [_plain(row, left_out) for row in rows] for name, rows in tables.items()}
    return plain if isinstance(run, AppRun) else plain | _more_tables(run)


def _more_tables(run: Run) -> dict[str, list[Row]]:
    """Return what runs of earlier versions lack, where there is any of it."""
    scores = [
        {"round": row.round, "metric": run.summary.primary_metric.name} | _plain(score, ())
        for row in run.rounds
        for score in row.client_scores
    ]
    tables = {"evaluations": scores}
    if run.labels is not None:
        # A line for a class of a device: names of classes may be equal, columns may not.
        tables["labels"] = [
            {"partition": partition, "class": name, "examples": count}
            for partition, counts in zip(run.labels.partitions, run.labels.counts, strict=True)
            for name, count in zip(run.labels.classes, counts, strict=True)
        ]
    if run.provenance is not None:
        tables["changes"] = [_plain(change, ()) for change in run.provenance.changes]
    return {name: rows for name, rows in tables.items() if rows}


def _plain(row: Any, left_out: Collection[str]) -> Row:
    lacks = set(left_out) if isinstance(row, ClientRow) else None
    plain: Row = TypeAdapter(type(row)).dump_python(row, mode="json", exclude=lacks)
    plain.pop("client_scores", None)  # a table of their own
    return plain
