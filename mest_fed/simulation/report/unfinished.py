"""A run that is not finished, as its report shows it: up to its newest checkpoint."""

import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mest_fed.config import from_table
from mest_fed.config.fleet import FleetConfig
from mest_fed.config.load import validated
from mest_fed.errors import InputError
from mest_fed.nn import read_state
from mest_fed.run_rows.app import AppRoundRow, AppSummary
from mest_fed.run_rows.rounds import ClientRow
from mest_fed.run_rows.summary import Summary
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.checkpoint import checkpoint_of_run, load_newest, restore_strategy
from mest_fed.server.folder_names import CLIENTS, CONFIG, ROUNDS, SUMMARY
from mest_fed.server.global_model import GlobalModel
from mest_fed.server.modes import build_strategy
from mest_fed.server.node import Node
from mest_fed.server.real_devices import real_devices, reported_peaks, tier_plans
from mest_fed.server.run_folder import FLOWER_KEYS, RunFolder
from mest_fed.server.seal import read_seal
from mest_fed.server.summary import RunLogs, TierPlan, build_summary, versions
from mest_fed.simulation.checkpoint import server_arrays
from mest_fed.simulation.fleet_grid import SimulatedDevices
from mest_fed.simulation.flower_app.summary import app_tiers
from mest_fed.simulation.more_rounds import planned
from mest_fed.simulation.peak_measurement import kept_peaks
from mest_fed.task import Task


def how_to_go_on(folder: Path, config: str) -> str:
    """Say in a few words what a person can do with an unfinished run of our own clients.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : str
        Its configuration.
    """
    run = RunFolder(folder)
    if not run.has_checkpoint:
        return "the run ended before its first checkpoint; begin it anew"
    if tomllib.loads(config).get("deployment", {}).get("folder"):
        server = f"mest-fed server --resume --out {shlex.quote(str(folder))}"
        return (
            f"the run is unfinished; continue it with `{server}` and the options of its link, or, "
            f"where Flower carried it, with `flwr run` and {FLOWER_KEYS[1]}"
        )
    command = f"mest-fed simulate --resume --out {shlex.quote(str(folder))}"
    return f"the run is unfinished; continue it with `{command}`"


def sum_up(folder: Path) -> tuple[Summary, RunLogs]:
    """Sum up an unfinished run of our own clients as of its newest checkpoint.

    Nothing is written. Rows that came after the checkpoint are left out: a resumed run has them
    anew. Of a run that is going on, this is as good.

    Raises
    ------
    InputError
        If there is no checkpoint after a whole round, or the folder is not as the checkpoint left
        it.
    """
    run = RunFolder(folder, ("--out", "report"))
    config = from_table(_read(folder), str(folder / CONFIG))
    if not run.has_checkpoint:
        raise InputError(
            f"{folder / SUMMARY} does not exist, and there is no checkpoint in {run.checkpoints}: "
            "the run came to nothing that a report could show"
        )
    arrays, facts = load_newest(run.checkpoints)
    with checkpoint_of_run():
        seal, name = read_seal(facts), str(facts.get("preset", folder.name))
        plan = planned(config, facts)
    run.check_seal(seal, config_known=plan is not None)
    config = config if plan is None else plan.config
    logs = RunLogs(run.logs.read_sealed(ROUNDS, seal), run.logs.read_sealed(CLIENTS, seal))
    if not logs.rounds:
        raise InputError(f"the run in {folder} has no whole round yet; there is nothing to report")
    task = Task(config)
    strategy = build_strategy(
        task, GlobalModel.from_state(task.spec, read_state(task.build_model()))
    )
    restore_strategy(strategy, server_arrays(arrays), facts)
    strategy.take_best()
    tiers, nodes = _tiers(task, facts), _real_nodes(facts)
    if nodes is None:
        peaks = kept_peaks(run, [tier.plan for tier in tiers])
    else:
        peaks = reported_peaks(tiers, nodes, logs.clients)
    summary = build_summary(
        task,
        tiers,
        strategy,
        preset=name,
        logs=logs,
        peaks=peaks,
        nodes=None if nodes is None else real_devices(nodes, logs.clients),
    )
    rounds = config.run.rounds
    how_far = f"the run is not finished: it came to round {strategy.record.round} of {rounds}"
    return replace(summary, unfinished=how_far), logs


def _read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _tiers(task: Task, facts: Mapping[str, Any]) -> list[TierPlan]:
    """Return the devices of a run: of a simulated one the fleet, of a deployed one those seen."""
    from mest_fed.simulation.checkpoint import RunFacts
    from mest_fed.simulation.fleet import Fleet

    if (nodes := _real_nodes(facts)) is not None:
        return tier_plans(task, nodes)
    kept = RunFacts.read(facts)
    return Fleet.of(task, kept.plans, kept.profiles).tiers


def _real_nodes(facts: Mapping[str, Any]) -> list[Node] | None:
    """Return the devices of a deployed run that were seen; None of a simulated one."""
    return None if "plans" in facts else [Node(**node) for node in facts["nodes"]]


def sum_up_app(
    table: Mapping[str, Any], rounds: Sequence[AppRoundRow], tasks: Sequence[ClientRow]
) -> AppSummary:
    """Sum up an unfinished run of a Flower app from its configuration and its rows.

    What its strategies return at the end is not known.
    """
    app = table["app"]
    statuses = Counter(task.status for task in tasks)
    failures = Counter(task.failure for task in tasks)
    last = rounds[-1] if rounds else None
    sums = ("bytes_up", "bytes_down", "trained", "evaluated", "failed", "energy_joules")
    devices = None
    if "fleet" in table:
        sections = {key: table[key] for key in FleetConfig.model_fields if key in table}
        devices = SimulatedDevices(validated(FleetConfig, sections, CONFIG))
    number = 0 if last is None else last.round
    return AppSummary(
        app=str(app["name"]),
        serverapp=str(app["serverapp"]),
        clientapp=str(app["clientapp"]),
        seed=int(table["run"]["seed"]),
        nodes=int(app["nodes"]),
        rounds=number,
        **{key: sum(getattr(row, key) for row in rounds) for key in sums},
        virtual_seconds=0.0 if last is None else last.virtual_seconds,
        wall_seconds=0.0 if last is None else last.wall_seconds,
        tasks={status: statuses[status] for status in TaskStatus},
        failures={kind: n for kind in FailureKind if (n := failures[kind])},
        tiers=() if devices is None else tuple(app_tiers(devices)),
        results=(),
        server_state={},
        server_arrays={},
        versions=versions(),
        unfinished=f"the run did not end: it came to round {number}",
    )
