"""Rows of the run folder, from the server's record of a round and the clock's timings."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import MessageType

from mest_fed.devices.profile import profile_name
from mest_fed.run_rows.rounds import (
    SIMULATED_LACK,
    ClientRow,
    ClientScore,
    RoundRow,
    Spread,
)
from mest_fed.run_rows.row import Row, as_row
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.round_record import (
    ClientOutcome,
    ClientTiming,
    RoundRecord,
    received,
    settled,
)


def client_rows(record: RoundRecord, timings: Sequence[ClientTiming]) -> list[Row]:
    """Return a row for each client of a round's record; times and energy are modelled."""
    rows = []
    for client, failure, timing in settled(record.clients, timings, MessageType.TRAIN):
        row = ClientRow(
            round=record.round,
            partition=client.partition,
            device=profile_name(client.device),
            status=TaskStatus.OK if failure is None else failure.status,
            failure=failure,
            reason=client.reason,
            staleness=client.staleness,
            examples=client.examples,
            presented=client.presented,
            train_loss=client.train_loss,
            bytes_down=received(client, failure),
            bytes_up=client.bytes_up,
            **timed(timing),
            density=client.density,
            reported=client.reported,
        )
        rows.append(as_row(row, optional=SIMULATED_LACK))
    return rows


def timed(timing: ClientTiming | None) -> Row:
    """Return the times and the energy of a client's row; nothing was modelled where None."""
    return {
        "start_seconds": timing.start if timing else None,
        "download_seconds": timing.download_seconds if timing else 0.0,
        "setup_seconds": timing.setup_seconds if timing else 0.0,
        "train_seconds": timing.train_seconds if timing else 0.0,
        "upload_seconds": timing.upload_seconds if timing else 0.0,
        "energy_joules": timing.energy_joules if timing else 0.0,
    }


def round_row(
    record: RoundRecord,
    timings: Sequence[ClientTiming],
    *,
    virtual_seconds: float,
    wall_seconds: float,
) -> Row:
    """Return the row of a round."""
    ends = [why for _, why, _ in settled(record.clients, timings, MessageType.TRAIN)]
    row = RoundRow(
        round=record.round,
        accuracy=record.metrics.get("accuracy"),
        loss=record.metrics.get("loss"),
        client_accuracy=record.client_metrics.get("accuracy"),
        metrics=record.metrics,
        client_metrics=record.client_metrics,
        train_loss=record.train_loss,
        density=record.density,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down(timings),
        virtual_seconds=virtual_seconds,
        wall_seconds=wall_seconds,
        trained=record.count(TaskStatus.OK),
        failed=record.without_reply,
        rejected=record.count(TaskStatus.REJECTED),
        tasks=count_statuses(ends),
        failures=count_failures(ends),
        energy_joules=known_sum([timing.energy_joules for timing in timings]),
        stopped=record.stopped or None,
        diverged=record.diverged,
        client_scores=client_scores(record.evaluations),
    )
    return as_row(row)


def count_statuses(ends: Iterable[FailureKind | None]) -> dict[TaskStatus, int]:
    """Count how tasks ended, by why they failed (None: they did not); zeros are left out."""
    counts = Counter(TaskStatus.OK if kind is None else kind.status for kind in ends)
    return {status: counts[status] for status in TaskStatus if counts[status]}


def count_failures(ends: Iterable[FailureKind | None]) -> dict[FailureKind, int]:
    """Count why tasks failed; zeros are left out."""
    counts = Counter(ends)
    return {kind: counts[kind] for kind in FailureKind if counts[kind]}


def client_scores(evaluations: Iterable[ClientOutcome]) -> tuple[ClientScore, ...]:
    """Return the scores of the clients that evaluated, by partition."""
    scores = (
        ClientScore(
            partition=each.partition,
            device=profile_name(each.device),
            examples=each.examples,
            value=each.score,
        )
        for each in evaluations
        if each.score is not None
    )
    return tuple(sorted(scores, key=lambda score: score.partition))


def with_metrics(row: Row) -> Row:
    """Return the row of a round with its metrics by name, which earlier versions did not write."""
    if "metrics" in row or "accuracy" not in row:
        return row
    found = {name: row.get(name) for name in ("accuracy", "loss")}
    return row | {"metrics": {name: value for name, value in found.items() if value is not None}}


def totals(rounds: Sequence[Mapping[str, Any]]) -> Row:
    """Sum up a run from the rows of ``rounds.jsonl``: fields of its summary."""
    asked = [row["client_accuracy"] for row in rounds if row["client_accuracy"] is not None]
    return {
        "final_client_accuracy": Spread(**asked[-1]) if asked else None,
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "virtual_seconds": rounds[-1]["virtual_seconds"],
        "wall_seconds": rounds[-1]["wall_seconds"],
        "clients_trained": sum(row["trained"] for row in rounds),
        "clients_failed": sum(row["failed"] for row in rounds),
        "clients_rejected": sum(row["rejected"] for row in rounds),
        "energy_joules": known_sum([row["energy_joules"] for row in rounds]),
    }


def known_sum(values: Sequence[float | None]) -> float | None:
    """Add up what is known; None where something is not known, and all else is nothing."""
    total = sum(value for value in values if value is not None)
    return total if total or None not in values else None
