"""How long a step of a plan takes: on a device, or against another plan. Modelled."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from torch import nn

from mest_fed.catalogue import FORMATS, Recompute
from mest_fed.devices import DeviceProfile, Work, train_seconds, training_work
from mest_fed.devices.program_cost import program_flops, program_seconds
from mest_fed.memory import ModelTrace, Plan, TrainingShape
from mest_fed.memory.footprint import peak_granules
from mest_fed.memory.program_bytes import Compiler
from mest_fed.runtime.program import Program
from mest_fed.sparsity import Static

_CAVEAT = (
    "Step times count convolutions and linear layers; small micro-batches, packing and norms "
    "computed again cost more than is modelled."
)
_OF_PROGRAMS = (
    "Step times of compiled programs count multiply-adds or bytes of each operator; caches are not "
    "modelled, nor what bf16 costs a processor without instructions for it."
)


def format_multiple(ratio: float) -> str:
    """Write how many times as long something takes."""
    return f"\N{MULTIPLICATION SIGN} {ratio:.2f}"


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
        The device, if there is one.
    compiler : callable, optional
        Gives the programs of steps, where they are compiled: times are then read off them.
    """

    trace: ModelTrace
    scheme: str
    profile: DeviceProfile | None
    compiler: Compiler | None = None
    _known: dict[Hashable, Work] = field(default_factory=dict, repr=False)
    _programs: dict[Hashable, Program | None] = field(default_factory=dict, repr=False)

    @property
    def caveat(self) -> str:
        """What stands beside the figures."""
        return _CAVEAT if self.compiler is None else _OF_PROGRAMS

    def seconds(self, shape: TrainingShape) -> float | None:
        """Return how long the device takes for a step, a whole batch; None without a device."""
        if self.profile is None:
            return None
        program = self._program(shape)
        if program is not None:
            return program_seconds(self.profile, program, shape.batch, self.scheme)
        return train_seconds(self.profile, self._image(shape), self.scheme) * shape.batch

    def against(self, shape: TrainingShape, other: TrainingShape) -> float:
        """Return a step's time as a multiple of another's: on the device, or by operations."""
        return self._amount(shape) / self._amount(other)

    def as_table(self, plan: Plan, plain: TrainingShape) -> dict[str, float | None]:
        """Return a plan's times as plain values; ``plain`` is training that saves nothing."""
        seconds = self.seconds(plan.shape)
        return {
            "step_seconds": None if seconds is None else round(seconds, 6),
            "step_relative": round(self.against(plan.shape, plain), 6),
        }

    def counts_groups(self, shape: TrainingShape) -> bool:
        """Say whether a step's time says what micro-batches cost: that of a compiled one does."""
        return self._program(shape) is not None

    def _amount(self, shape: TrainingShape) -> float:
        seconds = self.seconds(shape)
        if seconds is not None:
            return seconds
        program = self._program(shape)
        if program is not None:
            return program_flops(program, shape.batch)
        work = self._image(shape) * shape.batch
        return work.dense_flops + work.sparse_flops

    def _program(self, shape: TrainingShape) -> Program | None:
        """Return the step's program, at the target density; None if it has none."""
        if self.compiler is None:
            return None
        if shape not in self._programs:
            step = self.compiler(self._model(shape), shape)
            self._programs[shape] = None if step is None else step.program
        return self._programs[shape]

    def _model(self, shape: TrainingShape) -> nn.Module:
        """Return a meta model at the target density, and not at a method's peak."""
        return self.trace.at(peak_granules(self.trace, Static(), shape))

    def _image(self, shape: TrainingShape) -> Work:
        """Count the operations of an image."""
        memory = shape.memory
        key = shape.density, shape.distribution, memory.recompute, memory.frozen
        if key not in self._known:
            trace, model = self.trace, self._model(shape)
            self._known[key] = training_work(model, trace.input_shape, memory, trace.input_dtype)
        return self._known[key]


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
