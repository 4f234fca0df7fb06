"""The devices of a deployed run, as its summary has them: kinds, plans, and what they reported."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from logging import getLogger
from typing import Any

from mest_fed.devices import DeviceProfile, load_profile
from mest_fed.devices.profile import profile_name
from mest_fed.errors import InputError
from mest_fed.memory import Plan
from mest_fed.run_rows.summary import RealDevice
from mest_fed.server.node import Node
from mest_fed.server.summary import NO_PROFILE, TierPlan
from mest_fed.task import Task

log = getLogger("flwr.mest_fed")


def tier_plans(task: Task, nodes: Iterable[Node]) -> list[TierPlan]:
    """Return the devices of each profile and budget, with their plan; the smallest budget first.

    Devices whose profile is not here, or that have none, are of one kind. What a plan takes is that
    of the device whose number of examples asks for the most.

    Parameters
    ----------
    task : Task
        The run's task.
    nodes : iterable of Node
        The devices.
    """
    examples: dict[tuple[str, int], list[int]] = {}
    for node in nodes:
        examples.setdefault((_kind(node.device), node.budget), []).append(node.examples)
    tiers = []
    for (kind, budget), counts in examples.items():
        try:
            plan = task.plan(budget, kind or NO_PROFILE)
            taken = [task.footprint_on(plan, each) for each in set(counts) if each]
            if taken:
                plan = replace(plan, footprint=max(taken, key=lambda it: it.total))
            tiers.append(TierPlan(built_in_profile(kind) if kind else None, len(counts), plan))
        except InputError as error:
            log.warning("the summary leaves out the plan of %s", error)
    return sorted(tiers, key=lambda tier: (tier.plan.budget, tier.name))


def reported_peaks(
    tiers: Iterable[TierPlan], nodes: Iterable[Node], clients: Iterable[Mapping[str, Any]]
) -> dict[Plan, int]:
    """Return the largest peak that devices of each plan reported, in bytes; a plan may have none.

    Parameters
    ----------
    tiers : iterable of TierPlan
        Profiles with the plans of their budgets.
    nodes : iterable of Node
        The devices.
    clients : iterable of mapping
        Rows of their parts in rounds.
    """
    largest: dict[tuple[str, int], int] = {}
    peaks = _peaks(clients)
    for node in nodes:
        if (size := peaks.get(node.partition)) is not None:
            owner = _kind(node.device), node.budget
            largest[owner] = max(largest.get(owner, 0), size)
    found: dict[Plan, int] = {}
    for tier in tiers:  # two of which may have one plan
        peak = largest.get((tier.name, tier.plan.budget))
        if peak is not None:
            found[tier.plan] = max(peak, found.get(tier.plan, 0))
    return found


def real_devices(nodes: Iterable[Node], clients: Iterable[Mapping[str, Any]]) -> list[RealDevice]:
    """Return what the summary says of each device, with the largest peak that it reported."""
    peaks = _peaks(clients)
    return [
        RealDevice(
            partition=node.partition,
            name=node.name,
            device=profile_name(node.device),
            examples=node.examples,
            budget_bytes=node.budget,
            density=node.density,
            micro_batch=node.micro_batch,
            predicted_peak_bytes=node.predicted_peak,
            measured_peak_bytes=peaks.get(node.partition),
        )
        for node in nodes
    ]


def _peaks(clients: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return the largest peak that each device reported, by partition, where it reported any."""
    found: dict[int, int] = {}
    for row in clients:
        size = (row.get("reported") or {}).get("measured_peak_bytes")
        if size:
            found[row["partition"]] = max(found.get(row["partition"], 0), int(size))
    return found


def _kind(device: str) -> str:
    """Return the name of a device's profile; empty where that is not on the server."""
    profile = built_in_profile(device)
    return "" if profile is None else profile.name


def built_in_profile(device: str) -> DeviceProfile | None:
    """Return a built-in profile; None for a device's own file, which is not on the server."""
    try:
        return None if device.endswith(".toml") else load_profile(device)
    except InputError:
        return None
