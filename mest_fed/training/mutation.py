"""Mutation within one client's round.

A hard-bounded method drops and grows half-way through the local steps. A soft-bounded one grows
before the first step and drops after the last, so that new weights are ranked once trained and
what travels is at the target; its peak exists on the device alone.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.optim import Optimizer

from mest_fed.nn import Mutator
from mest_fed.nn.optimizers import ClientOptimizer
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
    """

    method: Method
    progress: float
    seed: int
    round: int

    @property
    def bounds(self) -> Bounds:
        """How far this round's mutation goes."""
        return self.method.bounds(self.progress)


class LocalMutation:
    """A round's mutation as steps that the trainer calls."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: ClientOptimizer | Optimizer,
        mutation: RoundMutation,
        steps: int,
    ) -> None:
        self.optimizer = optimizer
        self.last = steps - 1
        self.mutation = mutation
        self.bounds = mutation.bounds
        self.mutator = Mutator(model, mutation.method, optimizer)
        self.middle = max(0, steps // 2 - 1)

    @property
    def soft(self) -> bool:
        """Whether the round trains above the target."""
        return self.bounds.ceiling > 1

    def open(self) -> None:
        """Before the first step."""
        if self.soft:
            self.mutator.grow(self.bounds, self._generator)

    def before_step(self, step: int) -> None:
        """Before a step's gradients are computed."""
        if isinstance(self.optimizer, ClientOptimizer):  # gradients stay, for the importance
            self.optimizer.keep_gradients = self._reads_gradients_of(step)
        if self._mutates_at(step):
            self.mutator.keep_dense_gradients(True)

    def after_step(self, step: int) -> None:
        """After a step, while its gradients stand."""
        if self._mutates_at(step):
            self.mutator.mutate(self.bounds, self._generator)

    def close(self) -> None:
        """After the last step."""
        if self.soft:
            self.mutator.drop()

    def _mutates_at(self, step: int) -> bool:
        return not self.soft and self.bounds.floor < 1 and step == self.middle

    def _reads_gradients_of(self, step: int) -> bool:
        return self._mutates_at(step) or (self.soft and step == self.last)

    def _generator(self, group: str) -> np.random.Generator:
        return numpy_generator(self.mutation.seed, "growth", self.mutation.round, group)
