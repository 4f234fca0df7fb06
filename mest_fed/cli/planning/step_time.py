"""How long a step of a plan takes: on a device, or against another plan. Modelled."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import nn

from mest_fed.catalogue import FORMATS, Recompute
from mest_fed.devices import (
    DeviceProfile,
    StepWork,
    Work,
    program_step_work,
    torch_step_work,
    train_seconds,
)
from mest_fed.devices.cost import REFERENCE
from mest_fed.devices.forward_work import perturbed_step_work, third_of
from mest_fed.memory import ModelTrace, Plan, TrainingShape
from mest_fed.memory.footprint import peak_granules
from mest_fed.memory.program_bytes import Compiler
from mest_fed.sparsity import Static

#: What stands beside the figures.
CAVEAT = (
    "Step times count multiply-adds, bytes and calls at the device's rates; its caches are not "
    "modelled, nor what bf16 costs a processor without instructions for it."
)


def format_multiple(ratio: float) -> str:
    """Write how many times as long something takes."""
    return f"\N{MULTIPLICATION SIGN} {ratio:.2f}"


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


#: Lanes left empty between two bands.
_BETWEEN = 1
#: Two times that differ by less, relatively, are one.
_SAME = 1e-6

Timed = tuple[Plan, float]


@dataclass(frozen=True)
class FrontierPoint:
    """A plan in the picture.

    Parameters
    ----------
    plan : Plan
        The plan.
    time : float
        Its step time.
    height : int
        Number of its lane, from below.
    chosen : bool
        Whether it is the plan of the report.
    """

    plan: Plan
    time: float
    height: int
    chosen: bool = False

    @property
    def peak(self) -> int:
        """Predicted peak in bytes."""
        return self.plan.footprint.total


def place(frontier: Sequence[Timed], chosen: Timed) -> list[FrontierPoint]:
    """Give each plan a lane.

    Parameters
    ----------
    frontier : sequence of (Plan, float)
        Plans and their step times. Of plans that recomputation makes no different, as in a model
        without norms, the first stays.
    chosen : (Plan, float)
        The plan that was chosen, whether the frontier has it or not.
    """
    timed = _distinct([chosen, *frontier])
    times = _levels([time for _, time in timed])
    points, height = [], 0
    for time in times:
        here = [plan for plan, exact in timed if _level(exact, times) == time]
        lanes = sorted({_lane(plan) for plan in here}, reverse=True)
        for plan in here:
            at = height + lanes.index(_lane(plan))
            points.append(FrontierPoint(plan, time, at, plan is chosen[0]))
        height += len(lanes) + _BETWEEN
    return points


def front(points: Sequence[FrontierPoint], density: float) -> list[FrontierPoint]:
    """Return the points of a density that no other beats in memory and time, the fastest first."""
    best: list[FrontierPoint] = []
    like = [
        point for point in points if point.plan.density == density and not point.plan.memory.frozen
    ]
    for point in sorted(like, key=lambda each: (each.time, each.peak)):
        if not best or point.peak < best[-1].peak:
            best.append(point)
    return best


def _lane(plan: Plan) -> tuple[int, int, str]:
    """Return what orders lanes: recomputation, then the format; a user's own come last."""
    saved, formats = plan.memory.saved, list(FORMATS)
    place = formats.index(saved) if saved in formats else len(formats)
    return list(Recompute).index(Recompute(plan.memory.recompute)), place, saved


def _distinct(timed: Sequence[Timed]) -> list[Timed]:
    first: dict[object, Timed] = {}
    for plan, time in timed:
        key = time, plan.footprint.total, plan.memory.saved, plan.micro_batch
        first.setdefault(key, (plan, time))
    return list(first.values())


def _levels(times: Sequence[float]) -> list[float]:
    levels: list[float] = []
    for time in sorted(times):
        if not levels or time - levels[-1] > _SAME * time:
            levels.append(time)
    return levels


def _level(time: float, levels: Sequence[float]) -> float:
    return min(levels, key=lambda level: abs(level - time))
