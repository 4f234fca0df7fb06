"""The report's tables: the plan of each tier, and the last rounds."""

from dataclasses import dataclass

from mest_fed.units import format_bytes, format_seconds
from simulations.report.formats import format_count, format_joules, format_percent
from simulations.report.schema import RoundRow, Run, Tier

_LAST_ROUNDS = 10
NOTHING = "—"


@dataclass(frozen=True)
class PlanRow:
    """One tier, formatted."""

    title: str
    profile: str
    cells: tuple[str, ...]
    parts: str
    plan: str
    over_budget: bool


PLAN_COLUMNS = (
    ("clients", ""),
    ("budget", ""),
    ("peak", "modelled"),
    ("peak", "measured"),
    ("of budget", ""),
    ("density", ""),
    ("micro-batch", ""),
)

ROUND_COLUMNS = (
    ("round", ""),
    ("accuracy", "measured"),
    ("clients' median", "measured"),
    ("training loss", "measured"),
    ("density", "measured"),
    ("up", "measured"),
    ("down", "measured"),
    ("updates", ""),
    ("no reply", ""),
    ("rejected", ""),
    ("virtual time", "modelled"),
    ("energy", "modelled"),
)


def plan_rows(run: Run) -> list[PlanRow]:
    """Format the tiers, tightest budget first, in the columns of ``PLAN_COLUMNS``."""
    return [_plan_row(tier) for tier in sorted(run.summary.tiers, key=lambda t: t.budget_bytes)]


def _plan_row(tier: Tier) -> PlanRow:
    measured = tier.measured_peak_bytes
    parts = sorted(tier.parts.items(), key=lambda part: -part[1])
    return PlanRow(
        title=tier.title,
        profile=tier.profile,
        cells=(
            format_count(tier.clients),
            format_bytes(tier.budget_bytes),
            format_bytes(tier.predicted_peak_bytes),
            format_bytes(measured) if measured else NOTHING,
            format_percent(tier.peak_bytes / max(tier.budget_bytes, 1)),
            format_percent(tier.density),
            format_count(tier.micro_batch),
        ),
        parts=", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size),
        plan=tier.plan,
        over_budget=tier.peak_bytes > tier.budget_bytes,
    )


def last_rounds(run: Run) -> list[tuple[str, ...]]:
    """Format the last rounds in the columns of ``ROUND_COLUMNS``."""
    return [_round_cells(row) for row in run.rounds[-_LAST_ROUNDS:]]


def _round_cells(row: RoundRow) -> tuple[str, ...]:
    clients = row.client_accuracy
    return (
        str(row.round),
        NOTHING if row.accuracy is None else f"{row.accuracy:.2%}",
        NOTHING if clients is None else f"{clients.median:.2%}",
        NOTHING if row.train_loss is None else f"{row.train_loss:.4f}",
        format_percent(row.density),
        format_bytes(row.bytes_up),
        format_bytes(row.bytes_down),
        str(row.trained),
        str(row.failed),
        str(row.rejected),
        format_seconds(row.virtual_seconds),
        format_joules(row.energy_joules),
    )
