"""How long a round takes on a device, by the plan it trains under; and when it shall be done."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mest_fed.devices import DeviceProfile, train_seconds
from mest_fed.devices.step_time import StepTime
from mest_fed.errors import InputError
from mest_fed.memory import Plan, TrainingShape
from mest_fed.memory.planner import Pace
from mest_fed.simulation.behaviour.clock import least_seconds
from mest_fed.task import Task
from mest_fed.units import format_seconds, number_of


@dataclass(frozen=True)
class Deadline:
    """When a round shall be done.

    Parameters
    ----------
    seconds : float
        From the instruction to the reply.
    examples : int or None
        That the device trains on; those of the run's largest share if left out.
    """

    seconds: float
    examples: int | None = None


@dataclass(frozen=True)
class RoundTime:
    """Rounds of one model on one device; all of it is modelled.

    Parameters
    ----------
    task : Task
        The run's.
    clock : StepTime
        Of its steps.
    profile : DeviceProfile
        The device.
    deadline : Deadline
        When a round shall be done.

    Raises
    ------
    InputError
        From :attr:`examples`, if they are neither given nor a configuration's.
    """

    task: Task
    clock: StepTime
    profile: DeviceProfile
    deadline: Deadline

    @cached_property
    def examples(self) -> int:
        """Training examples of the device."""
        if self.deadline.examples is not None:
            return self.deadline.examples
        task = self.task
        count = 1 if task.draws_examples else len(task.devices)
        return max(task.example_counts(partition)[0] for partition in range(count))

    @property
    def pace(self) -> Pace:
        """The deadline, for a planner."""
        return Pace(self.seconds, self.deadline.seconds, "--deadline")

    def training(self, shape: TrainingShape) -> float:
        """Return how long all local epochs take."""
        epochs = self.task.config.training.local_epochs
        steps = self.clock.work(shape).epoch(self.examples, shape.batch) * epochs
        work = steps + self.task.batch_work(epochs * self.examples)
        return train_seconds(self.profile, work, self.clock.scheme)

    def seconds(self, shape: TrainingShape) -> float:
        """Return how long a round takes: to start, to receive, to train and to send."""
        return self._beside(shape) + self.training(shape)

    def _beside(self, shape: TrainingShape) -> float:
        spec = self.task.at_width(shape.density).spec
        return least_seconds(self.task.config, spec, self.profile, shape.density)

    def decided(self, plan: Plan, of_budget: Plan, wished: TrainingShape) -> str:
        """Say which of budget and deadline made the plan what it is: a word for JSON."""
        if plan.shape != of_budget.shape:
            return "deadline"
        return "nothing" if plan.shape == wished else "budget"

    def as_table(self, plan: Plan, of_budget: Plan, wished: TrainingShape) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "examples": self.examples,
            "local_epochs": self.task.config.training.local_epochs,
            "deadline_seconds": self.deadline.seconds,
            "seconds": round(self.seconds(plan.shape), 6),
            "training_seconds": round(self.training(plan.shape), 6),
            "decided": self.decided(plan, of_budget, wished),
        }

    def in_words(self, plan: Plan, of_budget: Plan, wished: TrainingShape) -> str:
        """Say what a round takes, and whether budget or deadline decided."""
        took, training = self.seconds(plan.shape), self.training(plan.shape)
        config = self.task.config
        epochs = number_of(config.training.local_epochs, "epoch")
        start = "to start Flower's process, " if config.behaviour.process_per_message else ""
        text = (
            f"A round of {number_of(self.examples, 'example')}, {epochs}, takes "
            f"{format_seconds(took)} of the {format_seconds(self.deadline.seconds)} allowed "
            f"(modelled): {format_seconds(training)} to train, {format_seconds(took - training)} "
            f"{start}to receive and to send. "
        )
        decided = self.decided(plan, of_budget, wished)
        if decided == "deadline":
            other = format_seconds(self.seconds(of_budget.shape))
            return f"{text}The deadline decided: by the budget alone a round would take {other}."
        if decided == "budget":
            return f"{text}The budget decided: its plan is fast enough."
        return f"{text}Neither budget nor deadline takes anything away."


def check_examples(named: bool, deadline: Deadline) -> None:
    """Refuse a deadline of nobody knows how many examples.

    Parameters
    ----------
    named : bool
        Whether a configuration or a preset is planned, which says how many a device has.
    deadline : Deadline
        The deadline.

    Raises
    ------
    InputError
        If neither says it.
    """
    if deadline.examples is None and not named:
        raise InputError(
            "--deadline needs the number of examples that a device trains on; allowed: "
            "--examples N, or a CONFIG.toml or --preset NAME"
        )
