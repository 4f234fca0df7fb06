"""Rows of the run folder, from the server's record of a round and the clock's timings."""

from collections.abc import Mapping, Sequence
from typing import Any

from mest_fed.schema import FailureKind, TaskStatus
from server.rounds import ClientOutcome, RoundRecord
from server.timing import ClientTiming

Row = dict[str, Any]


def client_rows(record: RoundRecord, timings: Sequence[ClientTiming]) -> list[Row]:
    """Return a row for each client of a round's record; times and energy are modelled."""
    by_node = {t.node_id: t for t in timings if t.message_type == "train"}
    rows = []
    for client in record.clients:
        timing = by_node.get(client.node_id)
        failure = _failure(client, timing)
        rows.append(
            {
                "round": record.round,
                "partition": client.partition,
                "device": client.device,
                "status": TaskStatus.OK if failure is None else failure.status,
                "failure": failure,
                "reason": client.reason,
                "staleness": client.staleness,
                "examples": client.examples,
                "presented": client.presented,
                "train_loss": client.train_loss,
                "bytes_down": client.bytes_down,
                "bytes_up": client.bytes_up,
                "start_seconds": timing.start if timing else None,
                "download_seconds": timing.download_seconds if timing else 0.0,
                "train_seconds": timing.train_seconds if timing else 0.0,
                "upload_seconds": timing.upload_seconds if timing else 0.0,
                "energy_joules": timing.energy_joules if timing else 0.0,
                "density": client.density,
            }
        )
    return rows


def _failure(client: ClientOutcome, timing: ClientTiming | None) -> FailureKind | None:
    """Return why there is no update: the clock knows better why nothing came than the server."""
    judged = client.status in (TaskStatus.OK, TaskStatus.REJECTED, TaskStatus.SURPLUS)
    if judged or timing is None or timing.failure is None:
        return client.failure
    return timing.failure


def round_row(
    record: RoundRecord,
    timings: Sequence[ClientTiming],
    *,
    virtual_seconds: float,
    wall_seconds: float,
) -> Row:
    """Return the row of a round."""
    return {
        "round": record.round,
        "accuracy": record.accuracy,
        "loss": record.loss,
        "client_accuracy": record.client_accuracy,
        "train_loss": record.train_loss,
        "density": record.density,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "virtual_seconds": virtual_seconds,
        "wall_seconds": wall_seconds,
        "trained": record.count(TaskStatus.OK),
        "failed": record.without_reply,
        "rejected": record.count(TaskStatus.REJECTED),
        "energy_joules": sum(timing.energy_joules for timing in timings),
    }


def totals(rounds: Sequence[Mapping[str, Any]]) -> Row:
    """Sum up a run from its round rows: what ``summary.json`` says of it as a whole."""
    evaluated = [row for row in rounds if row["accuracy"] is not None]
    asked = [row for row in rounds if row["client_accuracy"] is not None]
    return {
        "final_accuracy": evaluated[-1]["accuracy"] if evaluated else None,
        "final_client_accuracy": asked[-1]["client_accuracy"] if asked else None,
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "virtual_seconds": rounds[-1]["virtual_seconds"],
        "wall_seconds": rounds[-1]["wall_seconds"],
        "clients_trained": sum(row["trained"] for row in rounds),
        "clients_failed": sum(row["failed"] for row in rounds),
        "clients_rejected": sum(row["rejected"] for row in rounds),
        "energy_joules": sum(row["energy_joules"] for row in rounds),
    }
