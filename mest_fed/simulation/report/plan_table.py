"""The plans of a fleet: devices of equal plans together, and their table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mest_fed.run_rows.summary import Tier
from mest_fed.simulation.report.formats import format_count, format_percent, shorten
from mest_fed.simulation.report.runs import Run
from mest_fed.simulation.report.tables import NOTHING
from mest_fed.units import format_bytes

#: What the parts of a prediction are; the words of :class:`mest_fed.memory.Footprint`.
PART_MEANINGS = {
    "values": "active weights, dense parameters and buffers",
    "gradients": "those of the values",
    "optimizer": "what the optimizer keeps of each value, such as momentum",
    "index": "the positions of the active weights",
    "activations": "what one micro-batch keeps between forward and backward",
    "workspace": "buffers that are used again and again within a step, such as gradients of "
    "activations and the kernels' scratch",
    "batch": "the examples and targets of one batch",
    "wire": "messages: the received one and the model decoded from it, what an update leaves out",
    "runtime": "what the program itself takes beside its tensors: descriptions of a compiled "
    "step, for each size of its groups, and of a round; or a constant where torch trains",
}


@dataclass(frozen=True)
class PlanGroup:
    """Tiers whose plans are equal but for their budgets, the one nearest to its budget first."""

    tiers: tuple[Tier, ...]

    @property
    def first(self) -> Tier:
        """The tier that is nearest to its budget, which stands for the others."""
        return self.tiers[0]

    @property
    def clients(self) -> int:
        """How many clients train so."""
        return sum(tier.clients for tier in self.tiers)

    @property
    def over_budget(self) -> bool:
        """Whether a peak is above its budget."""
        return self.first.peak_bytes > self.first.budget_bytes

    @property
    def use(self) -> float:
        """The peak as a share of the budget, the largest such."""
        return _use(self.first)

    @property
    def use_in_words(self) -> str:
        """The same, and that it is the largest where budgets differ."""
        least, most = self.budget_range
        return f"{'up to ' if least != most else ''}{format_percent(self.use)}"

    @property
    def budget_range(self) -> tuple[int, int]:
        """The least and the largest budget."""
        sizes = [tier.budget_bytes for tier in self.tiers]
        return min(sizes), max(sizes)

    @property
    def budgets(self) -> str:
        """The budget, or the least and the largest one."""
        return _range(self.budget_range)

    @property
    def titles(self) -> str:
        """All its devices."""
        return ", ".join(dict.fromkeys(tier.title for tier in self.tiers))

    def label(self, length: int) -> str:
        """Name the group in so many characters at most."""
        others = len({tier.title for tier in self.tiers}) - 1
        more = f" + {others} more" if others else ""
        return shorten(self.first.title, length - len(more)) + more


def plan_groups(tiers: Iterable[Tier]) -> list[PlanGroup]:
    """Put tiers of equal plans and peaks together, tightest budget first.

    Real devices of one kind that train alike share a group, too, though each has a budget and a
    peak of its own. A tier that is over its budget stands alone.
    """
    ordered = sorted(tiers, key=lambda tier: tier.budget_bytes)
    several = {kind for kind, count in Counter(map(_kind, ordered)).items() if count > 1}
    groups: dict[object, list[Tier]] = {}
    for tier in ordered:
        alike = (tier.density, tier.micro_batch, tier.recompute, tier.saved)
        peaks = (tier.predicted_peak_bytes, tier.measured_peak_bytes, tuple(tier.parts.items()))
        if _use(tier) > 1:
            key: object = (*alike, *peaks, _kind(tier), tier.budget_bytes)
        else:
            key = (*alike, _kind(tier)) if _kind(tier) in several else (*alike, *peaks)
        groups.setdefault(key, []).append(tier)
    return [PlanGroup(tuple(sorted(each, key=_use, reverse=True))) for each in groups.values()]


def _kind(tier: Tier) -> tuple[str, str]:
    return tier.profile, tier.title


def _use(tier: Tier) -> float:
    """Return a tier's peak as a share of its budget."""
    return tier.peak_bytes / max(tier.budget_bytes, 1)


PLAN_COLUMNS = (
    ("clients", ""),
    ("budget", ""),
    ("peak", "modelled"),
    ("peak", "measured"),
    ("of budget", ""),
    ("density", ""),
    ("micro-batch", ""),
)


@dataclass(frozen=True)
class PlanRow:
    """One group of tiers, formatted."""

    title: str
    profile: str
    cells: tuple[str, ...]
    parts: str
    plan: str
    over_budget: bool


def plan_rows(run: Run) -> list[PlanRow]:
    """Format the groups of tiers in the columns of ``PLAN_COLUMNS``."""
    return [_row(group) for group in plan_groups(run.summary.tiers)]


def _row(group: PlanGroup) -> PlanRow:
    tier = group.first
    measured = [each.measured_peak_bytes for each in group.tiers if each.measured_peak_bytes]
    parts = sorted(tier.parts.items(), key=lambda part: -part[1])
    of_first = "Where the peak is nearest to its budget: "
    which = of_first if len({t.plan for t in group.tiers}) > 1 else ""
    return PlanRow(
        title=group.titles,
        profile=", ".join(dict.fromkeys(each.profile for each in group.tiers if each.profile)),
        cells=(
            format_count(group.clients),
            group.budgets,
            _range([each.predicted_peak_bytes for each in group.tiers]),
            _range(measured) if measured else NOTHING,
            group.use_in_words,
            format_percent(tier.density),
            format_count(tier.micro_batch),
        ),
        parts=", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size),
        plan=f"{which}{tier.plan}",
        over_budget=group.over_budget,
    )


def _range(sizes: Sequence[int]) -> str:
    """Write a number of bytes, or the least and the largest."""
    return " to ".join(dict.fromkeys(map(format_bytes, (min(sizes), max(sizes)))))


def part_meanings(run: Run) -> list[tuple[str, str]]:
    """Return the parts that the predictions of a run have, and what they are."""
    names = {name for tier in run.summary.tiers for name, size in tier.parts.items() if size}
    return [(name, meaning) for name, meaning in PART_MEANINGS.items() if name in names]
