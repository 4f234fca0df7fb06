"""Plans by memory and step time, in lanes: what the picture of a plan draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from mest_fed.catalogue import FORMATS, Recompute
from mest_fed.memory import Plan

#: What stands beside the figures.
CAVEAT = (
    "Step times count multiply-adds, bytes and calls at the device's rates; its caches are not "
    "modelled, nor what bf16 costs a processor without instructions for it."
)


def format_multiple(ratio: float) -> str:
    """Write how many times as long something takes."""
    return f"\N{MULTIPLICATION SIGN} {ratio:.2f}"


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
