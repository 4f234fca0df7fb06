"""How far a run has come: its best round, and whether it ends before its last one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mest_fed.config.stopping import StopRule
from mest_fed.schema import Metric
from mest_fed.training import Objective


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
        return cls(objective.primary, rule, None if rule is None else rule.watched(objective))

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
