"""When masks change within one client's round, and by which draws. Needs NumPy alone.

A hard-bounded method drops and grows half-way through the local steps. A soft-bounded one grows
before the first step and drops after the last, so that new weights are ranked once trained and
what travels is at the target; its peak exists on the device alone.
"""

from dataclasses import dataclass

import numpy as np

from mest_fed.rng import numpy_generator
from mest_fed.sparsity import Bounds, Method


@dataclass(frozen=True)
class RoundMutation:
    """What a round's mutation is.

    Parameters
    ----------
    method : Method
        Drops and grows.
    progress : float
        Of the run, in [0, 1].
    seed : int
        The run's seed.
    round : int
        Server round. Growth is drawn from (seed, round, layer), so all clients propose the same.
    owner : int, optional
        The client whose own growth it is: drawn from (seed, round, layer, owner).
    """

    method: Method
    progress: float
    seed: int
    round: int
    owner: int | None = None

    @property
    def bounds(self) -> Bounds:
        """How far this round's mutation goes."""
        return self.method.bounds(self.progress)

    @property
    def soft(self) -> bool:
        """Whether the round trains above the target."""
        return self.bounds.ceiling > 1

    def mutates_at(self, step: int, steps: int) -> bool:
        """Whether masks drop and grow after a step, counted from 0, of so many."""
        return not self.soft and self.bounds.floor < 1 and step == max(0, steps // 2 - 1)

    def reads_gradients_of(self, step: int, steps: int) -> bool:
        """Whether the importance reads the gradients of a step of so many."""
        return self.mutates_at(step, steps) or (self.soft and step == steps - 1)

    def generator(self, group: str) -> np.random.Generator:
        """Return what the growth of a mask group is drawn from."""
        own = () if self.owner is None else (self.owner,)
        return numpy_generator(self.seed, "growth", self.round, group, *own)
