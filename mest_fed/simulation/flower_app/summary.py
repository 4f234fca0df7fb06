"""The summary of a run of a Flower app: totals, what its strategies returned, on which devices."""

import hashlib
from collections.abc import Iterator, Sequence

from flwr.app import ArrayRecord, RecordDict

from mest_fed.run_rows.app import AppResult, AppSummary, AppTier
from mest_fed.run_rows.summary import Watts
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.flower_internals import Result
from mest_fed.server.summary import versions
from mest_fed.simulation.fleet_grid import SimulatedDevices
from mest_fed.simulation.flower_app.project import AppProject
from mest_fed.simulation.flower_app.record import AppRecord, LeftOut, finite_numbers, metrics_of


def build_summary(
    project: AppProject,
    record: AppRecord,
    devices: SimulatedDevices | None,
    *,
    seed: int,
    num_nodes: int,
    results: Sequence[tuple[str, Result]],
    state: RecordDict,
) -> AppSummary:
    """Sum up a finished run.

    Parameters
    ----------
    project, record, devices : AppProject, AppRecord, SimulatedDevices or None
        What ran, what came of it, and on which devices.
    seed, num_nodes : int
        Of the run.
    results : sequence of (str, Result)
        What strategies returned.
    state : RecordDict
        The ServerApp's state at the end.
    """
    rounds, left_out = record.rounds, record.left_out
    _see_results(left_out, results)
    last = rounds[-1] if rounds else None
    sums = ("bytes_up", "bytes_down", "trained", "evaluated", "failed", "energy_joules")
    return AppSummary(
        app=project.name,
        serverapp=project.serverapp,
        clientapp=project.clientapp,
        seed=seed,
        nodes=num_nodes,
        rounds=0 if last is None else last.round,
        **{key: sum(getattr(row, key) for row in rounds) for key in sums},
        virtual_seconds=0.0 if last is None else last.virtual_seconds,
        wall_seconds=0.0 if last is None else last.wall_seconds,
        tasks={status: record.statuses[status] for status in TaskStatus},
        failures={kind: n for kind in FailureKind if (n := record.failures[kind])},
        tiers=() if devices is None else tuple(app_tiers(devices)),
        results=tuple(result_row(strategy, result) for strategy, result in results),
        server_state=metrics_of(state),
        server_arrays=state_digests(state),
        versions=versions(),
        not_finite=dict(left_out.counts),
        not_finite_last=left_out.at_the_end,
    )


def _see_results(left_out: LeftOut, results: Sequence[tuple[str, Result]]) -> None:
    """Take note of what strategies returned of the server's own evaluation."""
    for _, result in results:
        for number, record in sorted(result.evaluate_metrics_serverapp.items()):
            left_out.see("server", number, record)


def result_row(strategy: str, result: Result) -> AppResult:
    """Return what a strategy returned: its metrics by source, round and name."""
    sources = {
        "train": result.train_metrics_clientapp,
        "evaluate": result.evaluate_metrics_clientapp,
        "server": result.evaluate_metrics_serverapp,
    }
    metrics = {
        source: {number: finite_numbers(record) for number, record in sorted(rounds.items())}
        for source, rounds in sources.items()
    }
    return AppResult(strategy=strategy, metrics=metrics, arrays_sha256=arrays_sha256(result.arrays))


def state_digests(state: RecordDict) -> dict[str, str]:
    """Return a hash of each record of arrays in a state, by name."""
    return {name: arrays_sha256(arrays) for name, arrays in state.array_records.items()}


def arrays_sha256(arrays: ArrayRecord) -> str:
    """Return a hash of arrays: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def app_tiers(devices: SimulatedDevices) -> Iterator[AppTier]:
    """Yield the kinds of device of a fleet."""
    for name, profile in devices.profiles.items():
        yield AppTier(
            profile=profile.name,
            title=profile.title,
            clients=devices.assignment.counts[name],
            watts=Watts(compute=profile.compute_watts, radio=profile.radio_watts),
        )
