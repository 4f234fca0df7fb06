"""Whether a device's plan still fits when other programs take memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from mest_fed.memory import Plan
from mest_fed.units import format_bytes


@dataclass(frozen=True)
class MemoryNeed:
    """What a device's plan takes of what it may take.

    Parameters
    ----------
    budget : int
        Bytes that training may take while other programs hold no more than usual.
    peak : int
        Bytes that it takes: measured, or where nobody measured what the plan predicts.
    """

    budget: int
    peak: int


def memory_needs(plans: Mapping[str, Plan], peaks: Mapping[Plan, int]) -> dict[str, MemoryNeed]:
    """Return the need of each profile from its plan and the measured peaks, where there are any."""
    return {
        name: MemoryNeed(plan.budget, peaks.get(plan, plan.footprint.total))
        for name, plan in plans.items()
    }


def shortage(need: MemoryNeed, memory_bytes: int, held: float) -> str | None:
    """Return why a plan does not fit, or None if it does.

    Compared are the plan's peak and what is left of the device's budget when other programs hold
    ``held`` of its RAM beyond what the budget leaves them.

    Parameters
    ----------
    need : MemoryNeed
        Of the device's plan.
    memory_bytes : int
        RAM of the device.
    held : float
        Share of it, from 0 on.
    """
    free = max(0, need.budget - round(held * memory_bytes))
    if need.peak <= free:
        return None
    return (
        f"out of memory: training takes {format_bytes(need.peak)}, and other programs leave "
        f"{format_bytes(free)} of {format_bytes(need.budget)}"
    )
