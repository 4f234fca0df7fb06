"""Where the energy of a run went (modelled): by tier, into computing and into the radio."""

from dataclasses import dataclass
from itertools import accumulate

from simulations.report.schema import Run, TaskRow, Tier
from simulations.report.totals import tasks_by_device

_ROUNDING = 1e-6  # sums of many rows agree no better


@dataclass(frozen=True)
class EnergyUse:
    """Joules of one tier, or of the evaluations of all.

    ``other`` is what nobody divided: all of it in runs of earlier versions and in evaluations.
    """

    title: str
    compute: float
    radio: float
    other: float
    tasks: int = 0

    @property
    def total(self) -> float:
        """Joules in all."""
        return self.compute + self.radio + self.other


def energy_by_tier(run: Run) -> list[EnergyUse]:
    """Divide the run's energy; what its tasks do not account for went into evaluations."""
    tiers = {tier.profile: tier for tier in run.summary.tiers}
    uses = [
        _use(group.title, group.tasks, tiers.get(group.tasks[0].device))
        for group in tasks_by_device(run)
    ]
    whole = run.summary.energy_joules
    rest = whole - sum(use.total for use in uses)
    if rest > _ROUNDING * whole:
        uses.append(EnergyUse("evaluations", 0.0, 0.0, rest))
    return uses


def _use(title: str, tasks: tuple[TaskRow, ...], tier: Tier | None) -> EnergyUse:
    joules = sum(task.energy_joules for task in tasks)
    if tier is None or tier.watts is None:
        return EnergyUse(title, 0.0, 0.0, joules, len(tasks))
    compute = tier.watts.compute * sum(task.train_seconds for task in tasks)
    radio = tier.watts.radio * sum(task.download_seconds + task.upload_seconds for task in tasks)
    other = joules - compute - radio
    return EnergyUse(
        title, compute, radio, other if other > _ROUNDING * joules else 0.0, len(tasks)
    )


def energy_over_time(run: Run) -> list[tuple[float, float]]:
    """Return (virtual seconds, joules so far) at the end of each round."""
    sums = accumulate(row.energy_joules for row in run.rounds)
    return [(row.virtual_seconds, total) for row, total in zip(run.rounds, sums, strict=True)]


def lost_energy(run: Run) -> float:
    """Return the joules of tasks that gave no update."""
    return sum(task.energy_joules for task in run.tasks if task.status != "ok")
