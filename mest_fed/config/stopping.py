"""``server.stop_when``: the condition on a metric that ends a run before its last round."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mest_fed.errors import InputError
from mest_fed.schema import LOSS, Metric

if TYPE_CHECKING:  # the configuration is read without torch
    from mest_fed.training.objective import Objective

#: What ``server.stop_when`` may be.
FORMS = "'METRIC >= NUMBER', 'METRIC <= NUMBER' or 'no improvement of METRIC in N rounds'"

_NAME = r"(?P<metric>[A-Za-z][A-Za-z0-9_-]*)"
_NUMBER = r"(?P<value>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_THRESHOLD = re.compile(rf"{_NAME}\s*(?P<comparison>>=|<=)\s*{_NUMBER}")
_PATIENCE = re.compile(rf"no\s+improvement\s+of\s+{_NAME}\s+in\s+(?P<rounds>\d+)\s+rounds?")


@dataclass(frozen=True)
class StopRule:
    """One condition on a metric of the global model.

    Parameters
    ----------
    metric : str
        Its name.
    comparison : {">=", "<=", ""}
        How it is compared with ``value``; empty: the rule is about improvement.
    value : float
        The threshold.
    rounds : int
        Rounds without improvement after which the run stops.
    """

    metric: str
    comparison: str = ""
    value: float = math.nan
    rounds: int = 0

    @classmethod
    def parse(cls, text: str) -> "StopRule | None":
        """Read a rule; an empty text is none.

        Raises
        ------
        InputError
            If it has none of the :data:`FORMS`.
        """
        text = text.strip()
        if not text:
            return None
        if found := _THRESHOLD.fullmatch(text):
            return cls(found["metric"], found["comparison"], float(found["value"]))
        found = _PATIENCE.fullmatch(text)
        if found is None or int(found["rounds"]) < 1:
            raise InputError(f"{text!r} is no rule; allowed: {FORMS}")
        return cls(found["metric"], rounds=int(found["rounds"]))

    def holds(self, value: float) -> bool:
        """Say whether a value is beyond the threshold."""
        return value >= self.value if self.comparison == ">=" else value <= self.value

    def watched(self, objective: "Objective") -> Metric:
        """Return the metric of a task that the rule is about.

        Raises
        ------
        InputError
            If the task has none of that name.
        """
        metric = objective.metric(self.metric)
        if metric is None:
            names = dict.fromkeys([*(each.name for each in objective.metrics), LOSS.name])
            raise InputError(
                f"server.stop_when names {self.metric!r}, which the task has not; "
                f"allowed: {', '.join(names)}"
            )
        return metric
