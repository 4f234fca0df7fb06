"""The answer to a question: the plan, its runners-up, and their times."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mest_fed.cli.planning.budget import Budget
from mest_fed.cli.planning.clock import Clock
from mest_fed.cli.planning.question import DENSE, Question
from mest_fed.devices import DeviceProfile
from mest_fed.memory import Plan


@dataclass(frozen=True)
class Answer:
    """The plan for a question within a budget.

    Parameters
    ----------
    question : Question
        What is planned.
    budget : Budget
        Bytes, and where they come from.
    profile : DeviceProfile or None
        The device, if there is one.
    preference : sequence of str or None
        Levers, least harm first; None takes the order that suits the model.

    Raises
    ------
    BudgetError
        From :attr:`plan`, if nothing fits.
    """

    question: Question
    budget: Budget
    profile: DeviceProfile | None = None
    preference: Sequence[str] | None = field(default=None)

    @cached_property
    def plan(self) -> Plan:
        """The plan of least harm."""
        return self.question.planner.plan(self.budget.bytes, self.preference)

    @cached_property
    def runners_up(self) -> list[Plan]:
        """Other plans for the same budget, each sparing a lever that the plan pulled."""
        return self.question.planner.runners_up(self.plan, self.preference)

    @cached_property
    def frontier(self) -> list[Plan]:
        """A plan for each step of recomputation, format and micro-batch, whatever it needs."""
        return list(self.question.planner.frontier())

    @cached_property
    def clock(self) -> Clock:
        """Step times."""
        scheme = self.question.scheme if self.question.sparse else DENSE
        return Clock(self.question.trace, scheme, self.profile)

    def spared(self, other: Plan) -> list[str]:
        """Return the levers that another plan pulls less far than the plan does."""
        return [name for name, here, there in self._steps(other) if there < here]

    def pulled_further(self, other: Plan) -> list[str]:
        """Return the levers that another plan pulls further than the plan does."""
        return [name for name, here, there in self._steps(other) if there > here]

    def as_table(self, *, frontier: bool) -> dict[str, Any]:
        """Return all of it as plain values: the plan's own, and what goes with it."""
        table = self._table(self.plan)
        table["device"] = None if self.profile is None else self.profile.name
        table["runners_up"] = [self._table(plan) for plan in self.runners_up]
        if frontier:
            table["frontier"] = [self._table(plan) for plan in self.frontier]
        return table

    def _table(self, plan: Plan) -> dict[str, Any]:
        return plan.as_table() | self.clock.as_table(plan, self.question.wish)

    def _steps(self, other: Plan) -> list[tuple[str, int, int]]:
        levers = self.question.planner.wish.levers()
        return [
            (each.name, each.step_of(self.plan.shape), each.step_of(other.shape)) for each in levers
        ]
