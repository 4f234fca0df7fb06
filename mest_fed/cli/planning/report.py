"""The plans of ``mest-fed plan``: of one device in detail, or of each device of a fleet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mest_fed.cli.device_room import DeviceRoom
from mest_fed.cli.planning.request import Budget, PlanRequest
from mest_fed.cli.planning.round_time import Deadline, RoundTime
from mest_fed.devices import DeviceProfile, load_profile
from mest_fed.devices.step_time import StepTime
from mest_fed.errors import BudgetError
from mest_fed.memory import Plan, Planner, TrainingShape
from mest_fed.task import Task


def step_time(task: Task, profile: DeviceProfile | None) -> StepTime:
    """Return the step times of a task's model, on a device if there is one."""
    directions = task.zeroth_order.perturbations if task.goes_forward_alone else 0
    return StepTime(task.trace, task.scheme or "dense", profile, task.step_compiler, directions)


@dataclass(frozen=True)
class PlanReport:
    """The plan for a request within a budget.

    Parameters
    ----------
    request : PlanRequest
        What is planned.
    budget : Budget
        Bytes, and where they come from.
    threads : int
        That the device computes with.
    profile : DeviceProfile or None
        The device, if there is one.
    deadline : Deadline or None
        When a round shall be done, if that is asked; there is a device then.

    Raises
    ------
    BudgetError
        From :attr:`plan`, if nothing fits.
    DeadlineError
        From :attr:`plan`, if nothing that fits is fast enough.
    """

    request: PlanRequest
    budget: Budget
    threads: int = 1
    profile: DeviceProfile | None = None
    deadline: Deadline | None = None

    @property
    def room(self) -> DeviceRoom | None:
        """What the real device has left beside a node, if there is a device."""
        return None if self.profile is None else DeviceRoom(self.profile, self.budget.bytes)

    @cached_property
    def planner(self) -> Planner:
        """The planner."""
        return self.request.task.planner(self.threads)

    @property
    def wished(self) -> TrainingShape:
        """Training that gives nothing up."""
        return self.planner.limits.shape

    @property
    def preference(self) -> Sequence[str] | None:
        """Knobs, least harm first; None takes the order that suits the model."""
        return self.request.task.config.memory.preference

    @cached_property
    def plan(self) -> Plan:
        """The plan of least harm."""
        pace = None if self.round is None else self.round.pace
        try:
            return self.planner.plan(self.budget.bytes, self.preference, pace)
        except BudgetError as error:
            raise self.budget.too_tight(error) from None

    @cached_property
    def round(self) -> RoundTime | None:
        """A round's time, where there is a deadline."""
        if self.deadline is None or self.profile is None:
            return None
        return RoundTime(self.request.task, self.clock, self.profile, self.deadline)

    @cached_property
    def of_budget(self) -> Plan:
        """The plan of least harm if there were no deadline."""
        return self.planner.plan(self.budget.bytes, self.preference)

    @cached_property
    def runners_up(self) -> list[Plan]:
        """Other plans for the same budget, each sparing a knob that the plan pulled."""
        pace = None if self.round is None else self.round.pace
        return self.planner.runners_up(self.plan, self.preference, pace)

    @cached_property
    def frontier(self) -> list[Plan]:
        """A plan for each step of recomputation, format and micro-batch, whatever it needs."""
        return list(self.planner.frontier())

    @cached_property
    def clock(self) -> StepTime:
        """Step times."""
        return step_time(self.request.task, self.profile)

    def spared(self, other: Plan) -> list[str]:
        """Return the knobs that another plan pulls less far than the plan does."""
        return [name for name, here, there in self._steps(other) if there < here]

    def pulled_further(self, other: Plan) -> list[str]:
        """Return the knobs that another plan pulls further than the plan does."""
        return [name for name, here, there in self._steps(other) if there > here]

    def as_table(self, *, frontier: bool) -> dict[str, Any]:
        """Return all of it as plain values: the plan's own, and what goes with it."""
        table = self._table(self.plan)
        table["device"] = None if self.profile is None else self.profile.name
        table["node"] = None if self.room is None else self.room.as_table()
        if self.round is not None:
            table["round"] = self.round.as_table(self.plan, self.of_budget, self.wished)
        table["layers"] = self.request.layers
        table["runners_up"] = [self._table(plan) for plan in self.runners_up]
        if frontier:
            table["frontier"] = [self._table(plan) for plan in self.frontier]
        return table

    def _table(self, plan: Plan) -> dict[str, Any]:
        return plan.as_table() | self.clock.as_table(plan, self.wished)

    def _steps(self, other: Plan) -> list[tuple[str, int, int]]:
        knobs = self.planner.limits.knobs()
        return [
            (each.name, each.step_of(self.plan.shape), each.step_of(other.shape)) for each in knobs
        ]


@dataclass(frozen=True)
class DevicePlan:
    """What a simulation plans for the devices of one profile.

    Parameters
    ----------
    name : str
        The profile's, as the fleet's mix names it.
    profile : DeviceProfile
        The device.
    count : int
        How many the fleet has.
    plan : Plan
        How each of them trains.
    """

    name: str
    profile: DeviceProfile
    count: int
    plan: Plan


@dataclass(frozen=True)
class FleetReport:
    """The plans of a fleet, which are those of ``mest-fed simulate``.

    Parameters
    ----------
    request : PlanRequest
        Its task has the fleet.

    Raises
    ------
    InputError
        From :attr:`devices`, if a profile is unknown or a budget fits no plan.
    """

    request: PlanRequest

    @cached_property
    def devices(self) -> list[DevicePlan]:
        """One entry for each profile, the smallest budget first."""
        task = self.request.task
        counts, plans = task.devices.counts, task.fleet_plans()
        rows = [DevicePlan(name, load_profile(name), counts[name], plans[name]) for name in plans]
        return sorted(rows, key=lambda row: row.plan.budget)

    def clock(self, device: DevicePlan) -> StepTime:
        """Return the step times of a device."""
        return step_time(self.request.task, device.profile)

    def as_table(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        wished = self.request.task.planner().limits.shape
        return {
            "devices": [
                {
                    "device": device.name,
                    "count": device.count,
                    **device.plan.as_table(),
                    **self.clock(device).as_table(device.plan, wished),
                }
                for device in self.devices
            ],
            "layers": self.request.layers,
        }
