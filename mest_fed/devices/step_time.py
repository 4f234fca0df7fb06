"""How long a step of a plan takes: on a device, or against another plan. Modelled."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import nn

from mest_fed.devices.cost import REFERENCE, StepWork, Work, train_seconds
from mest_fed.devices.forward_work import perturbed_step_work, third_of
from mest_fed.devices.profile import DeviceProfile
from mest_fed.devices.program_work import program_step_work
from mest_fed.devices.torch_work import torch_step_work
from mest_fed.memory.footprint import peak_granules
from mest_fed.memory.plan import Plan
from mest_fed.memory.program_bytes import Compiler
from mest_fed.memory.step_bytes import TrainingShape
from mest_fed.memory.trace import ModelTrace
from mest_fed.sparsity import Static


@dataclass(frozen=True)
class PlannedWork:
    """What steps of a plan take.

    Parameters
    ----------
    step : StepWork
        By examples, groups and steps, at the target density.
    group : int
        Most examples that go through the model together.
    compiled : bool
        Whether a step is a program; else torch takes it.
    """

    step: StepWork
    group: int
    compiled: bool

    def epoch(self, examples: int, batch: int) -> Work:
        """Return the work of an epoch; a lone example at its end joins the batch before."""
        whole, rest = divmod(examples, batch)
        if rest == 1 and whole and batch > 1:
            whole, rest = whole - 1, batch + 1
        work = self.step.of_batch(batch, self.group) * whole
        return work + self.step.of_batch(rest, self.group) if rest else work


@dataclass(frozen=True)
class StepTime:
    """Step times of one model.

    Parameters
    ----------
    trace : ModelTrace
        Of the model.
    scheme : str
        Of its sparse layers; ``dense`` if it has none.
    profile : DeviceProfile or None
        The device, if there is one; times are compared on the reference machine otherwise.
    compiler : callable, optional
        Gives the programs of steps, where they are compiled: times are then read off them.
    perturbations : int
        Directions of a step by forward passes alone, which the compiler then gives; 0 for backward.
    """

    trace: ModelTrace
    scheme: str
    profile: DeviceProfile | None
    compiler: Compiler | None = None
    perturbations: int = 0
    _known: dict[Hashable, PlannedWork] = field(default_factory=dict, repr=False)

    def seconds(self, shape: TrainingShape) -> float | None:
        """Return how long the device takes for a step, a whole batch; None without a device."""
        return None if self.profile is None else self._seconds(shape)

    def against(self, shape: TrainingShape, other: TrainingShape) -> float:
        """Return a step's time as a multiple of another's."""
        return self._seconds(shape) / self._seconds(other)

    def as_table(self, plan: Plan, plain: TrainingShape) -> dict[str, float | None]:
        """Return a plan's times as plain values; ``plain`` is training that saves nothing."""
        seconds = self.seconds(plan.shape)
        return {
            "step_seconds": None if seconds is None else round(seconds, 6),
            "step_relative": round(self.against(plan.shape, plain), 6),
        }

    def work(self, shape: TrainingShape) -> PlannedWork:
        """Return what steps take."""
        if shape not in self._known:
            self._known[shape] = self._work(shape)
        return self._known[shape]

    def _seconds(self, shape: TrainingShape) -> float:
        planned = self.work(shape)
        work = planned.step.of_batch(shape.batch, planned.group)
        return train_seconds(self.profile or REFERENCE, work, self.scheme)

    def _work(self, shape: TrainingShape) -> PlannedWork:
        trace = self.trace.of_density(shape.density)
        # At the target density, and not at a method's peak, which lasts for a part of the run.
        model: nn.Module = trace.at(peak_granules(trace, Static(), shape))
        planned = None if self.compiler is None else self.compiler(model, shape)
        if planned is not None:
            step, group = program_step_work(planned.program), planned.program.examples
            return PlannedWork(self._probed(model, step), group, True)
        step = torch_step_work(model, trace.input_shape, shape.memory, trace.input_dtype)
        if self.perturbations:
            step = self._probed(model, third_of(step))
        return PlannedWork(step, shape.micro_batch, False)

    def _probed(self, model: nn.Module, step: StepWork) -> StepWork:
        """Return a step that probes the loss by forward passes; of backward, the step itself."""
        if not self.perturbations:
            return step
        weights = sum(it.numel() for it in model.parameters())
        return perturbed_step_work(step, weights, self.perturbations)
