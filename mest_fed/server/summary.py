"""``summary.json``: what a finished run came to."""

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from mest_fed.devices import DeviceProfile
from mest_fed.memory import Plan
from mest_fed.run_rows.row import Row
from mest_fed.run_rows.summary import Layer, RealDevice, Summary, Tier, Watts
from mest_fed.schema import FailureKind, TaskStatus
from mest_fed.server.rows import totals
from mest_fed.server.strategy import MestStrategy
from mest_fed.sparsity.state import ModelSpec, SparseState
from mest_fed.task import Task
from mest_fed.units import format_bytes

#: What a device is called that the server knows no profile of.
NO_PROFILE = "a device without a built-in profile"


@dataclass(frozen=True)
class TierPlan:
    """All devices of one profile, and in a deployed run of one budget.

    Parameters
    ----------
    profile : DeviceProfile or None
        What they are; None where the server knows nothing of their profiles.
    clients : int
        How many there are.
    plan : Plan
        How each of them trains.
    """

    profile: DeviceProfile | None
    clients: int
    plan: Plan

    @property
    def name(self) -> str:
        """Name of the profile; empty where there is none."""
        return "" if self.profile is None else self.profile.name

    @property
    def title(self) -> str:
        """What people call the devices."""
        return NO_PROFILE if self.profile is None else self.profile.title


@dataclass(frozen=True)
class RunLogs:
    """The rows of ``rounds.jsonl`` and ``clients.jsonl``."""

    rounds: Sequence[Mapping[str, Any]]
    clients: Sequence[Mapping[str, Any]]


_VERSIONS = ("mest-fed", "flwr", "torch", "numpy", "ray")


def model_sha256(state: SparseState) -> str:
    """Return a hash over all masks and values: equal for equal models, bit for bit."""
    digest = hashlib.sha256()
    for tensors in (state.masks, state.values, state.dense):
        for name in sorted(tensors):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def build_summary(
    task: Task,
    tiers: Sequence[TierPlan],
    strategy: MestStrategy,
    *,
    preset: str,
    logs: RunLogs,
    peaks: Mapping[Plan, int],
    nodes: Sequence[RealDevice] | None = None,
) -> Summary:
    """Sum up a finished run.

    Predicted bytes, virtual seconds and joules are modelled; measured bytes and wall seconds are
    measured. A tier's ``measured_peak_bytes`` is null where no process was measured.

    Parameters
    ----------
    task, tiers, strategy : Task, sequence of TierPlan, MestStrategy
        What ran, on which devices, and what came of it.
    preset : str
        What the configuration is called.
    logs : RunLogs
        The rows of all rounds.
    peaks : mapping
        Measured bytes of each plan that was measured; of a deployed run as its devices reported.
    nodes : sequence of RealDevice, optional
        Who took part in a deployed run; None in a simulation, whose tiers have all devices.
    """
    config, model = task.config, strategy.model
    state = model.state()
    statuses = Counter(row["status"] for row in logs.clients)
    failures = Counter(row.get("failure") for row in logs.clients)
    return Summary(
        preset=preset,
        seed=config.run.seed,
        rounds=strategy.record.round,
        dataset=config.data.name,
        model=config.model.name,
        method=config.sparsity.method,
        mutation=config.sparsity.mutation,
        scheme=config.sparsity.scheme if model.spec.groups else "dense",
        target_density=task.density,
        achieved_density=state.density(model.spec),
        **_learned(task, strategy, logs),
        **totals(logs.rounds),
        over_budget=failures[FailureKind.OVER_BUDGET],
        out_of_memory=failures[FailureKind.OUT_OF_MEMORY],
        tasks={status: statuses[status] for status in TaskStatus},
        failures={kind: count for kind in FailureKind if (count := failures[kind])},
        devices=sum(each.clients for each in tiers) if nodes is None else len(nodes),
        devices_asked=len({row["partition"] for row in logs.clients}),
        deployed=nodes is not None,
        without_power=sum(each.clients for each in tiers if each.profile is None),
        why_torch=task.why_torch(_named(tiers)),
        tiers=tuple(_tier(tier, peaks, task.divided) for tier in tiers),
        nodes=tuple(sorted(nodes or (), key=lambda node: node.partition)),
        layers=tuple(_layers(task, model.spec, state)),
        dense_bytes=4 * (model.spec.sparse_weights + _count(model.spec)),
        model_sha256=model_sha256(state),
        versions=versions(),
    )


def _learned(task: Task, strategy: MestStrategy, logs: RunLogs) -> Row:
    """Say how good the model is that the run leaves, which round's it is, and why it ended."""
    objective, server = task.objective, task.config.server
    primary, best = objective.primary, strategy.progress.best
    takes_best = server.keep == "best" and strategy.best is not None
    rows = [row for row in logs.rounds if not takes_best or row["round"] == best.round]
    evaluated = [row["metrics"] for row in rows if row["metrics"] or row.get("diverged")]
    metrics = strategy.final_metrics or (evaluated[-1] if evaluated else {})
    return {
        "task": task.config.task.name,
        "primary_metric": primary,
        "final_metrics": metrics,
        "final_accuracy": metrics.get("accuracy"),
        "best_round": None if best.round < 0 else best.round,
        "kept": server.keep,
        "kept_round": best.round if takes_best else strategy.record.round,
        "stopped": strategy.progress.stopped or None,
        "diverged_round": _diverged_round(rows),
    }


def _diverged_round(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the round since which no evaluation gave a finite loss, or None."""
    since: int | None = None
    for row in rows:
        if row.get("diverged"):
            since = row["round"] if since is None else since
        elif row["metrics"] or row.get("client_metrics"):
            since = None
    return since


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):  # an extra that is not installed
            found[name] = version(name)
    return found


def _named(tiers: Sequence[TierPlan]) -> dict[str, Plan]:
    """Return the plans by what their devices are called: with the budget, if one has several."""
    names = [tier.name or NO_PROFILE for tier in tiers]
    return {
        f"{name} ({format_bytes(tier.plan.budget)})" if names.count(name) > 1 else name: tier.plan
        for name, tier in zip(names, tiers, strict=True)
    }


def _tier(tier: TierPlan, peaks: Mapping[Plan, int], divided: str) -> Tier:
    profile, plan = tier.profile, tier.plan
    return Tier(
        profile=tier.name,
        title=tier.title,
        clients=tier.clients,
        budget_bytes=plan.budget,
        predicted_peak_bytes=plan.footprint.total,
        measured_peak_bytes=peaks.get(plan),
        shortfall_bytes=plan.shortfall,
        density=plan.density,
        micro_batch=plan.micro_batch,
        recompute=plan.memory.recompute,
        saved=plan.memory.saved,
        parts=plan.footprint.parts(),
        plan=plan.in_words(divided),
        watts=None
        if profile is None
        else Watts(compute=profile.compute_watts, radio=profile.radio_watts),
    )


def _count(spec: ModelSpec) -> int:
    return sum(int(np.prod(shape)) for shape in spec.dense.values())


def _layers(task: Task, spec: ModelSpec, state: SparseState) -> Iterator[Layer]:
    """Yield the layers in the order of the model's modules; ``reason`` says why one is dense."""
    for row in task.layers:
        if row.weights and row.reason is None:
            slots = state.masks[spec.group_of(row.name)]
            density = spec.layouts[row.name].active_weights(slots) / row.weights
            yield Layer(name=row.name, weights=row.weights, density=density)
        elif row.weights:  # one that another layer shares is counted there
            name = row.name or row.kind
            yield Layer(name=name, weights=row.weights, density=1.0, reason=str(row.reason))
