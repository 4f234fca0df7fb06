"""When a run ends before its last round, and which round's model was best."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mest_fed.errors import InputError
from mest_fed.schema import Metric
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


@dataclass
class Best:
    """The best value so far, and the round it is of; -1 before the first."""

    value: float = math.nan
    round: int = -1

    def see(self, metric: Metric, value: float | None, number: int) -> bool:
        """Note a round's value; return whether it is the best so far. The first of equals is."""
        if value is None or math.isnan(value):
            return False
        if self.round >= 0 and not metric.is_better(value, self.value):
            return False
        self.value, self.round = value, number
        return True


@dataclass
class Progress:
    """Follows the evaluations of a run.

    Parameters
    ----------
    primary : Metric
        By which a model is the best.
    rule : StopRule or None
        When the run stops.
    watched : Metric or None
        The metric of the rule.

    Attributes
    ----------
    best : Best
        By the primary metric.
    stopped : str
        Why the run stopped, for people; empty while it goes on.
    """

    primary: Metric
    rule: StopRule | None = None
    watched: Metric | None = None
    best: Best = field(default_factory=Best)
    stopped: str = ""
    _improved: Best = field(default_factory=Best)

    @classmethod
    def of(cls, objective: Objective, stop_when: str) -> "Progress":
        """Follow an objective's metrics.

        Raises
        ------
        InputError
            If the rule is none, or names a metric that the objective has not.
        """
        rule = StopRule.parse(stop_when)
        if rule is None:
            return cls(objective.primary)
        watched = objective.metric(rule.metric)
        if watched is None:
            names = dict.fromkeys([*(metric.name for metric in objective.metrics), "loss"])
            raise InputError(
                f"server.stop_when = {stop_when!r} names {rule.metric!r}, which the task has not; "
                f"allowed: {', '.join(names)}"
            )
        return cls(objective.primary, rule, watched)

    def see(self, number: int, values: Mapping[str, float]) -> bool:
        """Note the metrics of the model after a round; return whether it is the best so far.

        The rule counts from round 1: a model that nothing was trained for stops no run.
        """
        best = self.best.see(self.primary, values.get(self.primary.name), number)
        rule, watched = self.rule, self.watched
        if rule is None or watched is None:
            return best
        value = values.get(rule.metric)
        self._improved.see(watched, value, number)
        if number < 1:
            return best
        if rule.comparison:
            if value is not None and rule.holds(value):
                self.stopped = f"{rule.metric} was {watched.format(value)} after round {number}"
        elif number - max(0, self._improved.round) >= rule.rounds:
            self.stopped = (
                f"{rule.metric} had not improved since round {max(0, self._improved.round)} "
                f"after round {number}"
            )
        return best

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint holds; :meth:`restore` takes it back."""
        return {
            "best": _written(self.best),
            "improved": _written(self._improved),
            "stopped": self.stopped,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go back to where :meth:`facts` was taken.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is something else.
        """
        self.best, self._improved = _read(facts["best"]), _read(facts["improved"])
        self.stopped = str(facts["stopped"])


def _written(best: Best) -> list[float] | None:
    return None if best.round < 0 else [best.value, best.round]


def _read(given: Any) -> Best:
    if given is None:
        return Best()
    value, number = given
    if not isinstance(number, int) or not math.isfinite(value):
        raise ValueError(f"{given!r} is no best round")
    return Best(float(value), number)
