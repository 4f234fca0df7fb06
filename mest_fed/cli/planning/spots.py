"""Where plans stand in a picture of memory against time.

Many plans take the same time. They share a band, in lanes: one for each way of recomputing and each
format, along which only the micro-batch changes. Bands are in the order of their times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mest_fed.memory import Plan

#: Lanes left empty between two bands.
_BETWEEN = 1
#: Two times that differ by less, relatively, are one.
_SAME = 1e-6

Timed = tuple[Plan, float]


@dataclass(frozen=True)
class Spot:
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
        Whether it is the plan of the answer.
    """

    plan: Plan
    time: float
    height: int
    chosen: bool = False

    @property
    def peak(self) -> int:
        """Predicted peak in bytes."""
        return self.plan.footprint.total


def place(frontier: Sequence[Timed], chosen: Timed) -> list[Spot]:
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
    spots, height = [], 0
    for time in times:
        here = [plan for plan, exact in timed if _level(exact, times) == time]
        lanes = sorted({_lane(plan) for plan in here}, reverse=True)
        for plan in here:
            at = height + lanes.index(_lane(plan))
            spots.append(Spot(plan, time, at, plan is chosen[0]))
        height += len(lanes) + _BETWEEN
    return spots


def front(spots: Sequence[Spot], density: float) -> list[Spot]:
    """Return the spots of a density that no other beats in memory and time, the fastest first."""
    best: list[Spot] = []
    like = [spot for spot in spots if spot.plan.density == density and not spot.plan.savings.frozen]
    for spot in sorted(like, key=lambda each: (each.time, each.peak)):
        if not best or spot.peak < best[-1].peak:
            best.append(spot)
    return best


_RECOMPUTE = ("none", "norms", "segments")
_SAVED = ("fp32", "fp16", "bf16", "mask", "int8")


def _lane(plan: Plan) -> tuple[int, int]:
    savings = plan.savings
    return _RECOMPUTE.index(savings.recompute), _SAVED.index(savings.saved)


def _distinct(timed: Sequence[Timed]) -> list[Timed]:
    first: dict[object, Timed] = {}
    for plan, time in timed:
        key = time, plan.footprint.total, plan.savings.saved, plan.micro_batch
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
