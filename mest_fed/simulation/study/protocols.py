"""What a study measures, and what the runs that are compared must share: three protocols.

They are those of EdgeFlowerTune (arXiv 2605.08636): quality under a budget, cost to a target, and
robustness.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

from mest_fed.errors import InputError, not_allowed
from mest_fed.schema import Metric
from mest_fed.simulation.report.compare import Column
from mest_fed.simulation.report.figures.metric import Curve
from mest_fed.simulation.report.formats import format_joules, format_metric, format_percent
from mest_fed.simulation.report.runs import Run
from mest_fed.units import format_bytes, format_seconds

Row = Mapping[str, Any]


class Protocol:
    """What all studies measure: the metric, and what reaching it cost."""

    #: What the page says that is measured.
    question: ClassVar[str] = "What each reached, and at what cost."
    #: Beginnings of the keys that runs which are compared must have alike.
    shared: ClassVar[tuple[str, ...]] = ("task.",)
    #: Axes that the protocol has by itself, with bundles of settings.
    conditions: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    #: Runs that the others are always compared with: axis -> value.
    references: ClassVar[tuple[Mapping[str, str], ...]] = ()
    #: Columns whose paired differences are given.
    judged: ClassVar[tuple[str, ...]] = ("final", "peak_bytes", "traffic_bytes", "virtual_seconds")

    def measures(self, metric: Metric) -> list[Column]:
        """Return the columns of the table of means."""
        better = 1 if metric.higher_is_better else -1

        def write(value: float) -> str:
            return format_metric(metric, value)

        return [
            Column("final", f"final {metric.name}", "measured", write, better),
            Column("best", f"best {metric.name}", "measured", write, better),
            Column("peak_bytes", "largest peak", "measured", format_bytes, -1),
            Column("traffic_bytes", "sent", "measured", format_bytes, -1),
            Column("virtual_seconds", "virtual time", "modelled", format_seconds, -1),
            Column("energy_joules", "energy", "modelled", format_joules, -1),
            Column("density_reached", "density", "measured", format_percent),
        ]

    def columns(self) -> list[str]:
        """Return the columns that the protocol adds to a cell's row."""
        return []

    def measure(self, run: Run) -> dict[str, Any]:
        """Return the values of :meth:`columns` for a run that has ended."""
        return {}


class Quality(Protocol):
    """Quality under a budget: what each reaches with equal data, devices, budgets and rounds."""

    question = "What each reaches with the same data, devices, memory budgets and rounds."
    shared = ("task.", "data.", "fleet.", "behaviour.", "run.rounds")


class Cost(Protocol):
    """Cost to a target: rounds, bytes, virtual time and energy until the metric is good enough.

    Parameters
    ----------
    target : float
        The value of the primary metric that is waited for.
    """

    question = "What each spends until it reaches the target."
    shared = ("task.", "data.")
    judged = ("goal_round", "goal_traffic_bytes", "goal_virtual_seconds", "goal_energy_joules")

    def __init__(self, target: float | None = None) -> None:
        if target is None:
            raise InputError(
                "study.target is missing; allowed with study.protocol = 'cost': the value of the "
                "metric to wait for, such as 0.8"
            )
        self.target = target

    def measures(self, metric: Metric) -> list[Column]:
        """Return the columns: those of the target before those of the whole run."""
        if metric.share and not 0 <= self.target <= 1:
            raise not_allowed("study.target", self.target, f"a share in [0, 1], as {metric.name}")
        goal = format_metric(metric, self.target)
        return [
            Column("reached", f"reached {goal}", "measured", format_percent, 1),
            Column("goal_round", f"rounds to {goal}", "measured", _rounds, -1),
            Column("goal_traffic_bytes", f"sent to {goal}", "measured", format_bytes, -1),
            Column("goal_virtual_seconds", f"time to {goal}", "modelled", format_seconds, -1),
            Column("goal_energy_joules", f"energy to {goal}", "modelled", format_joules, -1),
            *super().measures(metric)[:3],
        ]

    def columns(self) -> list[str]:
        """Return whether the target was reached, and what it took."""
        return ["reached", *self.judged]

    def measure(self, run: Run) -> dict[str, Any]:
        """Return what it took until the first evaluation that was good enough; None if none was."""
        curve = Curve.of(run)
        points: Sequence[tuple[Any, float]] = [] if curve is None else curve.points
        higher = run.summary.primary_metric.higher_is_better
        good = (row for row, v in points if (v >= self.target if higher else v <= self.target))
        row = next(good, None)
        if row is None:
            return {"reached": 0.0} | dict.fromkeys(self.judged)
        numbers = [each.round for each in run.rounds]
        sent = accumulate(each.bytes_up + each.bytes_down for each in run.rounds)
        joules = accumulate(each.energy_joules or 0.0 for each in run.rounds)
        at = numbers.index(row.round)
        return {
            "reached": 1.0,
            "goal_round": row.round,
            "goal_traffic_bytes": list(sent)[at],
            "goal_virtual_seconds": row.virtual_seconds,
            "goal_energy_joules": list(joules)[at],
        }


_CALM = {
    "behaviour.availability": "always",
    "behaviour.stragglers": 0.0,
    "behaviour.dropout": 0.0,
    "behaviour.memory_pressure": 0.0,
}


class Robustness(Protocol):
    """Robustness: the same cells with stragglers, dropout or short memory, against calm ones."""

    question = "What each loses where devices are slow, drop out or are short of memory."
    shared = ("task.", "data.", "run.rounds")
    conditions: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "condition": {
            "calm": _CALM,
            "stragglers": _CALM | {"behaviour.stragglers": 0.3},
            "dropout": _CALM | {"behaviour.dropout": 0.3},
            "short-memory": _CALM | {"behaviour.memory_pressure": 0.1},
        }
    }
    references = ({"condition": "calm"},)
    judged = ("final", "traffic_bytes", "virtual_seconds", "energy_joules")


def _rounds(number: float) -> str:
    return f"{number:.4g}"
