"""Footprints that are made up, so that planning can be checked against all that is possible."""

from dataclasses import dataclass
from itertools import product

from hypothesis import strategies as st

from mest_fed.memory import Footprint, PlanLimits, Planner, TrainingSetup, TrainingShape
from mest_fed.sparsity import MestEM

SHAPE = TrainingShape(0.2, "uniform", 8, 8)
LIMITS = PlanLimits(SHAPE, segments=6)


@dataclass(frozen=True)
class Costs:
    """Bytes by what a shape has; what a knob saves grows step by step, but for recomputation."""

    image: int
    weights: int
    recompute: tuple[float, float, float]
    saved: tuple[float, float, float]

    def __call__(self, shape):
        memory = shape.memory
        recompute = dict(zip(("none", "norms", "segments"), self.recompute, strict=True))
        saved = dict(zip(("fp32", "fp16", "int8"), self.saved, strict=True))
        train = (6 - memory.frozen) / 6
        activations = self.image * shape.micro_batch * train
        copies = 1 + shape.momentum * train + (not memory.release_gradients) * train
        each = recompute[memory.recompute] * saved[memory.saved]
        return int(activations * each + self.weights * shape.density * copies)


EVEN = Costs(1000, 100_000, (1.0, 0.7, 0.3), (1.0, 0.5, 0.25))

shares = st.floats(0.01, 1)
costs = st.builds(
    Costs,
    image=st.integers(0, 10_000),
    weights=st.integers(0, 1_000_000),
    recompute=st.tuples(shares, shares, shares),  # it may cost more than it saves
    saved=st.tuples(st.just(1.0), shares, shares).map(lambda s: tuple(sorted(s, reverse=True))),
)


def made_up(trace, setting, shape):
    """Stand in for ``footprint``; the trace is the costs."""
    return Footprint(values=trace(shape), runtime=0)


def planner(costs=EVEN, limits=LIMITS):
    return Planner(costs, TrainingSetup(MestEM()), limits)


def everything(knobs, shape=SHAPE):
    """Yield all shapes, by preference: (how far each knob is pulled, the last first; shape)."""
    steps = [range(len(knob.steps)) for knob in reversed(knobs)]
    for pulled in product(*steps):
        made = shape
        for knob, step in zip(reversed(knobs), pulled, strict=True):
            made = knob.pull(made, knob.steps[step])
        yield pulled, made
