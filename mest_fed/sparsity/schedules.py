"""When to mutate and by how much, as functions of training progress in [0, 1]."""

import math
from dataclasses import dataclass

from mest_fed.errors import not_allowed


@dataclass(frozen=True)
class Stages:
    """A value that steps down at two moments of progress.

    MEST changes its mutation at epochs 90 and 120 of 160, that is at 56% and 75% of progress.

    Parameters
    ----------
    early, middle, late : float
        Value before, between and after the two moments.
    moments : tuple of float
        Progress at which the value changes.
    """

    early: float
    middle: float
    late: float = 0.0
    moments: tuple[float, float] = (0.5625, 0.75)

    def __call__(self, progress: float) -> float:
        """Return the value at a progress in [0, 1]."""
        if progress < self.moments[0]:
            return self.early
        return self.middle if progress < self.moments[1] else self.late


@dataclass(frozen=True)
class CosineDecay:
    """A value that decays as half a cosine to zero at ``end`` (Evci et al. 2020, section 3)."""

    initial: float
    end: float = 0.75

    def __call__(self, progress: float) -> float:
        """Return the value at a progress in [0, 1]."""
        if progress >= self.end:
            return 0.0
        return self.initial / 2 * (1 + math.cos(math.pi * progress / self.end))


@dataclass(frozen=True)
class Constant:
    """The same value up to ``end``, then zero."""

    value: float
    end: float = 0.75

    def __call__(self, progress: float) -> float:
        """Return the value at a progress in [0, 1]."""
        return self.value if progress < self.end else 0.0


Schedule = Stages | CosineDecay | Constant


@dataclass(frozen=True)
class Interval:
    """Which steps of a run mutate: every ``period`` of progress, never the first step.

    MEST mutates every 5 of 160 epochs, 3.125% of progress. A run whose steps (epochs or rounds)
    are longer than the period mutates at each step.

    Parameters
    ----------
    steps : int
        Steps in the run.
    period : float
        Progress between mutations, in (0, 1].
    """

    steps: int
    period: float = 5 / 160

    def __post_init__(self) -> None:
        if not 0 < self.period <= 1:
            raise not_allowed("mutation period", self.period, "a number in (0, 1]")

    def progress(self, step: int) -> float:
        """Return the progress at the start of a step, counted from 0."""
        return step / self.steps

    @property
    def every(self) -> int:
        """Steps between mutations."""
        return max(1, round(self.period * self.steps))

    def due(self, step: int) -> bool:
        """Say whether this step, counted from 0, mutates."""
        return step > 0 and step % self.every == 0

    def last(self, step: int) -> bool:
        """Say whether no later step mutates."""
        return step + self.every - step % self.every >= self.steps
